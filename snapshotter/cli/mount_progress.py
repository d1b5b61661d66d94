"""How a mount by hand shows itself: a live bar on a terminal, a plain line now and then elsewhere.

Both go to standard error, so that standard output has the result alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TextIO

import anyio
import click

from snapshotter.cli.progress import megabytes
from snapshotter.manual.messages import Message, Notice, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_SECONDS: Final = 5.0


class PlainDisplay:
    """A line every few seconds, and for each notice."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = time.monotonic()

    def show(self, message: Message) -> None:
        """Print what is worth a line."""
        if isinstance(message, Notice):
            click.echo(f"layergate: {message.text}", file=self._out)
        elif isinstance(message, Progress) and time.monotonic() - self._last >= _LINE_SECONDS:
            self._last = time.monotonic()
            click.echo(line(message), file=self._out)


class LiveDisplay:
    """One bar over all layers."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def show(self, message: Message) -> None:
        """Draw it."""
        if isinstance(message, Notice):
            self._bar.console.print(f"layergate: {message.text}", highlight=False, markup=False)
        elif isinstance(message, Progress):
            if self._task is None:
                self._task = self._bar.add_task("", files="", rate="")
            self._bar.update(
                self._task,
                completed=message.bytes_done,
                total=message.bytes_total,
                files=files(message),
                rate=f"{megabytes(message.rate)}/s",
            )


class DisplayReporter:
    """A display as the one who hears of a keeper in the same process."""

    def __init__(self, display: PlainDisplay | LiveDisplay) -> None:
        self._display = display

    @property
    def kept(self) -> bool:
        """See `Reporter.kept`: whoever started it is there, and sees its errors."""
        return False

    def tell(self, message: Message) -> None:
        """See `Reporter.tell`."""
        self._display.show(message)

    async def abandoned(self) -> None:
        """See `Reporter.abandoned`: a signal does that here."""
        await anyio.sleep_forever()


@contextmanager
def display(*, live: bool) -> Iterator[PlainDisplay | LiveDisplay]:
    """A display on standard error, for the time of the block."""
    if not live:
        yield PlainDisplay(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=None),
        DownloadColumn(),
        TextColumn("{task.fields[files]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield LiveDisplay(bar)


def line(progress: Progress) -> str:
    """Bytes, files, rate and time left in one line."""
    left = progress.bytes_total - progress.bytes_done
    eta = f", {max(1, round(left / progress.rate))} s left" if progress.rate else ""
    return (
        f"{progress.bytes_done / 1e6:.1f} of {megabytes(progress.bytes_total)}, {files(progress)}, "
        f"{megabytes(progress.rate)}/s{eta}"
    )


def files(progress: Progress) -> str:
    """How many files are here, of how many as far as that is known."""
    return f"{progress.files_done} of {progress.files_total} files"
