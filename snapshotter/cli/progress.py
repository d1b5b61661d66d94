"""How a pull shows itself: live bars on a terminal, plain lines elsewhere.

Both write to standard error, so that standard output has the result alone. rich is imported
only where there is a terminal to draw on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from snapshotter.containerd.progress import LayerState, PullProgress

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from snapshotter.containerd.types import Descriptor


class PlainProgress:
    """One line a change of state; for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._names: list[str] = []

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """See `PullProgress.layers`."""
        self._names = [
            f"layer {number}/{len(layers)} {short(layer.digest)} ({megabytes(layer.size)})"
            for number, layer in enumerate(layers, start=1)
        ]

    def state(self, number: int, state: LayerState) -> None:
        """See `PullProgress.state`."""
        print(f"{self._names[number]}: {state.value}", file=self._out, flush=True)

    def received(self, number: int, done: int) -> None:
        """Nothing: a line for every block would bury the rest."""


class LiveProgress:
    """A bar for each layer, with its state."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []
        self._sizes: list[int] = []

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """See `PullProgress.layers`."""
        self._sizes = [layer.size for layer in layers]
        self._tasks = [
            self._progress.add_task(short(layer.digest), total=layer.size, state=LayerState.WAITING.value)
            for layer in layers
        ]

    def state(self, number: int, state: LayerState) -> None:
        """See `PullProgress.state`."""
        self._progress.update(self._tasks[number], state=state.value)
        if state in (LayerState.DOWNLOADED, LayerState.UNPACKING):
            self.received(number, self._sizes[number])

    def received(self, number: int, done: int) -> None:
        """See `PullProgress.received`."""
        self._progress.update(self._tasks[number], completed=done)


@contextmanager
def shown_progress(*, live: bool) -> Iterator[PullProgress]:
    """Progress on standard error: bars when `live`, else lines."""
    if not live:
        yield PlainProgress(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        TextColumn("{task.fields[state]:<11}"),
        BarColumn(),
        DownloadColumn(),
        console=Console(stderr=True),
    ) as progress:
        yield LiveProgress(progress)


def short(digest: str) -> str:
    """The first twelve hex digits of a digest, as people compare them."""
    return digest.partition(":")[2][:12]


def megabytes(count: int) -> str:
    """`count` bytes in MB of 10**6, as the other commands give them."""
    return f"{count / 1e6:.1f} MB"
