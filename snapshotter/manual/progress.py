"""How far the layers of a mount are, told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import anyio

from fetcher.progress import Field
from fetcher.store import LayerStore
from snapshotter.manual.messages import Notice, Progress, Reporter
from snapshotter.streams import LayerStreams, State

_INTERVAL_SECONDS: Final = 0.5


def measure(store: LayerStore, layers: Iterable[str]) -> Progress:
    """The sum over distinct layers. Raises OSError if one is gone."""
    done = total = files_done = files_total = rate = 0
    for layer in dict.fromkeys(layers):
        counters = store.progress(layer)
        done += counters[Field.BYTES_DONE]
        total += counters[Field.BYTES_TOTAL]
        files_done += counters[Field.FILES_DONE]
        files_total += counters[Field.FILES_TOTAL]
        if counters[Field.STOP]:
            rate += counters[Field.RATE]
        counters.close()
    return Progress(min(done, total), total, min(files_done, files_total), files_total, rate)


async def report_progress(
    reporter: Reporter, store: LayerStore, streams: LayerStreams, layers: Sequence[str]
) -> None:
    """Tell it twice a second, and of each failure once, for as long as somebody listens."""
    told: set[str] = set()
    while not reporter.kept:
        reporter.tell(measure(store, layers))
        for layer in layers:
            state, reason = streams.state(layer)
            if state is State.FAILED and reason is not None and reason not in told:
                told.add(reason)
                reporter.tell(Notice(f"{reason}; it is tried again"))
        await anyio.sleep(_INTERVAL_SECONDS)
