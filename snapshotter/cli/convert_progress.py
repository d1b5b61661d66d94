"""How a conversion shows itself: live bars on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

from snapshotter.cli.progress import megabytes, short
from snapshotter.convert.progress import ConvertProgress, LayerState

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fetcher.manifest import Descriptor

_FINAL: Final = (LayerState.CONVERTED, LayerState.KEPT)


class PlainProgress:
    """One line a change of state; for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._names: list[str] = []

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """See `ConvertProgress.layers`."""
        self._names = [
            " ".join(filter(None, (f"layer {number}/{len(layers)}", short(layer.digest))))
            + f" ({megabytes(layer.size)})"
            for number, layer in enumerate(layers, start=1)
        ]

    def state(self, number: int, state: LayerState, blob: Descriptor) -> None:
        """See `ConvertProgress.state`."""
        size = f" ({megabytes(blob.size)})" if state is LayerState.CONVERTED else ""
        print(f"{self._names[number]}: {state.value}{size}", file=self._out, flush=True)

    def done(self, number: int, count: int) -> None:
        """Nothing: a line for every block would bury the rest."""

    def sent(self, digest: str, count: int) -> None:
        """Nothing, as in `done`."""


class LiveProgress:
    """A bar for each layer, with its state."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []
        self._written: dict[str, TaskID] = {}

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """See `ConvertProgress.layers`."""
        self._tasks = [
            self._progress.add_task(
                short(layer.digest) or "layer", total=layer.size, state=LayerState.WAITING.value
            )
            for layer in layers
        ]

    def state(self, number: int, state: LayerState, blob: Descriptor) -> None:
        """See `ConvertProgress.state`."""
        task = self._tasks[number]
        if state is LayerState.WRITING:
            self._written[blob.digest] = task
        self._progress.update(
            task, state=state.value, total=blob.size, completed=blob.size if state in _FINAL else 0
        )

    def done(self, number: int, count: int) -> None:
        """See `ConvertProgress.done`."""
        self._progress.update(self._tasks[number], completed=count)

    def sent(self, digest: str, count: int) -> None:
        """See `ConvertProgress.sent`."""
        task = self._written.get(digest)
        if task is not None:
            self._progress.update(task, completed=count)


@contextmanager
def shown_conversion(*, live: bool) -> Iterator[ConvertProgress]:
    """Progress on standard error: bars when `live`, else lines."""
    if not live:
        yield PlainProgress(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description:<12}"),
        TextColumn("{task.fields[state]:<11}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    ) as progress:
        yield LiveProgress(progress)
