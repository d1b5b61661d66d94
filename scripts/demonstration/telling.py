"""How the demonstration prints: a heading a step, then what happened. 80 columns."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.live import Live

from scripts.demonstration.stage import Stage
from snapshotter.cli.status import render, summary
from snapshotter.status import Status
from snapshotter.streams import State

_WIDTH: Final = 80
_TABLE_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 1.0

console = Console(highlight=False)


class Broken(Exception):
    """Something did not hold that layergate promises."""


def heading(number: int, text: str) -> None:
    """The line that a step begins with."""
    console.print(f"\n[bold]{number}. {text}[/bold]")


def tell(text: str) -> None:
    """What happened, wrapped."""
    console.print(textwrap.fill(text, _WIDTH, initial_indent="   ", subsequent_indent="   "), markup=False)


def quote(text: str) -> None:
    """What a program printed, or the kernel says."""
    for line in text.splitlines():
        if line.strip():
            shown = textwrap.fill(
                line, _WIDTH, initial_indent="   | ", subsequent_indent="   |   ", break_on_hyphens=False
            )
            console.print(shown, markup=False)


def require(condition: bool, text: str) -> None:
    """Say that something holds; raises Broken if it does not."""
    if not condition:
        raise Broken(text)
    console.print(f"   [green]ok[/green]  {text}")


def watch(stage: Stage, *, limit: float) -> Status:
    """Show the layers until all are complete; the last status. Raises Broken after `limit` seconds."""
    deadline = time.monotonic() + limit
    if console.is_terminal:
        with Live(render(stage.status()), console=console, auto_refresh=False) as live:
            return _until_complete(
                stage, deadline, _TABLE_SECONDS, lambda status: live.update(render(status), refresh=True)
            )
    return _until_complete(stage, deadline, _LINE_SECONDS, lambda status: tell(summary(status)))


def _until_complete(stage: Stage, deadline: float, interval: float, show: Callable[[Status], None]) -> Status:
    while True:
        status = stage.status()
        show(status)
        if all(layer.state is State.COMPLETE for layer in status.layers):
            return status
        failed = [layer for layer in status.layers if layer.state is State.FAILED]
        if failed:
            raise Broken(f"layer {failed[0].digest} failed: {failed[0].error}")
        if time.monotonic() > deadline:
            raise Broken("the layers are not complete in time")
        time.sleep(interval)
