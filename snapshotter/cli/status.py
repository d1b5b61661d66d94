"""`layergate status`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import address_option, json_option, verbose_option

if TYPE_CHECKING:
    from rich.console import RenderableType

    from snapshotter.status import LayerStatus, Status

_WATCH_SECONDS = 0.5


@click.command()
@address_option
@json_option
@click.option("--watch", is_flag=True, help="Go on showing it until interrupted, or until all is complete.")
@verbose_option
def command(address: str, as_json: bool, watch: bool) -> None:
    """Show every layer, how far it is, and what was fetched for it.

    \b
    stub       opened; nothing is being done for it now
    streaming  being brought here
    complete   native files; no process of ours is needed
    failed     the last try failed; it is tried again while a snapshot needs it

    \b
    Examples
      layergate status --watch
      layergate status --json | jq '.layers[] | {digest, state}'

    Exit codes: 0; 9 if layergate serve does not answer.
    """
    from snapshotter.cli.status_client import read_status

    if not watch:
        data = read_status(address)
        if as_json:
            sys.stdout.buffer.write(data + b"\n")
        else:
            _print(data)
        return
    if as_json or not sys.stdout.isatty():
        _watch_lines(address, as_json=as_json)
    else:
        _watch_live(address)


def _decode(data: bytes) -> Status:
    from snapshotter.status import STATUSES

    return STATUSES.decode(data)


def _print(data: bytes) -> None:
    from rich.console import Console

    Console().print(render(_decode(data)))


def _watch_lines(address: str, *, as_json: bool) -> None:
    """One line each time something changed."""
    from snapshotter.cli.status_client import read_status

    last = ""
    while True:
        data = read_status(address)
        status = _decode(data)
        line = data.decode() if as_json else summary(status)
        if line != last:
            click.echo(line)
            last = line
        if _is_settled(status):
            return
        time.sleep(_WATCH_SECONDS)


def _watch_live(address: str) -> None:
    from rich.live import Live

    from snapshotter.cli.status_client import read_status

    status = _decode(read_status(address))
    with Live(render(status), auto_refresh=False) as live:
        while not _is_settled(status):
            time.sleep(_WATCH_SECONDS)
            status = _decode(read_status(address))
            live.update(render(status), refresh=True)


def _is_settled(status: Status) -> bool:
    from snapshotter.streams import State

    return all(layer.state is State.COMPLETE for layer in status.layers)


def summary(status: Status) -> str:
    """The status in one line."""
    from snapshotter.streams import State

    complete = sum(layer.state is State.COMPLETE for layer in status.layers)
    done = sum(layer.bytes_done for layer in status.layers)
    total = sum(layer.bytes_total for layer in status.layers)
    return (
        f"{complete}/{len(status.layers)} layers complete, {done / 1e6:.1f} of {total / 1e6:.1f} MB, "
        f"{status.fuse.lookup} FUSE lookups, {status.fuse.read} FUSE reads"
    )


def render(status: Status) -> RenderableType:
    """The status as a table that fits 80 columns."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LAYER", no_wrap=True)
    table.add_column("STATE", no_wrap=True)
    table.add_column("", width=14)
    table.add_column("MB", justify="right", no_wrap=True)
    table.add_column("FILES", justify="right", no_wrap=True)
    for layer in status.layers:
        table.add_row(
            layer.digest.removeprefix("sha256:")[:12],
            layer.state.value,
            ProgressBar(total=max(1, layer.bytes_total), completed=layer.bytes_done, width=14),
            f"{layer.bytes_done / 1e6:.1f}/{layer.bytes_total / 1e6:.1f}",
            f"{layer.files_done}/{layer.files_total}",
        )
    fetched = status.fetched_bytes
    lines = [
        f"fetched MB: TOC {fetched.toc / 1e6:.1f}, prefetch {fetched.prefetch / 1e6:.1f}, "
        f"on demand {fetched.on_demand / 1e6:.1f}, background {fetched.background / 1e6:.1f}",
        f"FUSE: {status.fuse.lookup} lookups, {status.fuse.open} opens, {status.fuse.read} reads",
    ]
    if status.on_demand.count:
        lines.append(
            f"on demand: {status.on_demand.count} files, {status.on_demand.failed} failed, "
            f"p50 {status.on_demand.p50_ms:.0f} ms, p99 {status.on_demand.p99_ms:.0f} ms"
        )
    lines += [_reason(layer) for layer in status.layers if layer.error]
    return Group(table, Text("\n".join(lines)))


def _reason(layer: LayerStatus) -> str:
    return f"{layer.digest.removeprefix('sha256:')[:12]} failed: {layer.error}"
