"""The cache on a terminal: tables that fit 80 columns, and how far a verification is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from snapshotter.cache.quantities import age_text, size_text
from snapshotter.cache.values import CachedLayer, CleanReport, Inventory
from snapshotter.cache.verify import Progress, Verdict

_FAULTS_SHOWN: Final = 20
_USERS_SHOWN: Final = 3
_WIDTHS: Final = {"LAYER": 12, "REMOVED": 12, "TO REMOVE": 12, "SIZE": 8, "STATE": 10, "USED": 24}
"""Columns that keep their width where the images' names are too long for the rest."""


def print_out(what: RenderableType) -> None:
    """Print to standard output."""
    Console(highlight=False).print(what)


def inventory_table(inventory: Inventory, layers: Sequence[CachedLayer]) -> RenderableType:
    """`cache ls`."""
    now = time.time()
    table = _table("LAYER", "SIZE", "STATE", "USED", "IMAGE")
    for layer in layers:
        table.add_row(
            short(layer),
            size_text(layer.bytes),
            layer.state.value,
            _counted(layer) if layer.used_by else age_text(now - layer.last_used),
            _images(layer),
        )
    lines = [
        f"{_layers(len(layers))}, {size_text(inventory.bytes)}; "
        f"{size_text(inventory.free_bytes)} of {size_text(inventory.size_bytes)} free"
    ]
    used = [layer for layer in layers if layer.used_by]
    if used:
        lines.append("used by:")
        lines += [f"  {short(layer)}  {_users(layer)}" for layer in used]
    if inventory.leftovers:
        lines.append("left by a crash, and removed by layergate cache clean:")
        lines += [f"  {leftover.kind}: {leftover.path}" for leftover in inventory.leftovers]
    return Group(*([table] if layers else []), _text(lines))


def clean_table(report: CleanReport) -> RenderableType:
    """`cache clean`: what was removed, or would be, and what was not."""
    would = "would be " if report.dry_run else ""
    parts: list[RenderableType] = []
    if report.removed:
        table = _table("REMOVED" if not would else "TO REMOVE", "SIZE", "IMAGE")
        for layer in report.removed:
            table.add_row(short(layer), size_text(layer.bytes), _images(layer))
        parts.append(table)
    lines = [f"{would}removed, left by a crash: {one.kind} {one.path}" for one in report.leftovers]
    lines += [f"{short(layer)} stays, in use by {_users(layer)}" for layer in report.kept]
    lines += [f"no layer here is of {name}" for name in report.unknown]
    lines += [
        f"{mountpoint}: the keeper of this mount was killed; layergate umount {mountpoint} ends it"
        for mountpoint in report.orphaned
    ]
    lines += [f"not removed: {problem.path}: {problem.reason}" for problem in report.problems]
    count, size = len(report.removed), size_text(sum(layer.bytes for layer in report.removed))
    left = f"{size_text(report.bytes_left)} {'would be ' if would else ''}left"
    if report.dry_run:
        lines.append(f"{_layers(count)} of {size} would be removed; {left}")
    else:
        freed = size_text(report.freed_bytes)
        lines.append(f"{_layers(count)} of {size} removed; the file system has {freed} more free; {left}")
    return Group(*parts, _text(lines))


def verdict_lines(verdicts: Sequence[Verdict]) -> RenderableType:
    """`cache verify`: a line for each layer, and what is wrong with it."""
    lines = []
    for verdict in verdicts:
        name = _short_digest(verdict.digest, verdict.layer)
        wrong = f"{len(verdict.faults)} of {verdict.entries} entries wrong"
        if verdict.repaired:
            lines.append(f"{name}  repaired: {wrong}")
        elif verdict.faults:
            lines.append(f"{name}  {wrong}")
        elif verdict.error is None:
            lines.append(f"{name}  intact: {verdict.entries} entries, {size_text(verdict.bytes)}")
        if verdict.error is not None and not verdict.repaired:
            lines.append(f"{name}  {verdict.error}")
        lines += [f"  {fault.kind.value}: {fault.path}" for fault in verdict.faults[:_FAULTS_SHOWN]]
        if len(verdict.faults) > _FAULTS_SHOWN:
            lines.append(f"  and {len(verdict.faults) - _FAULTS_SHOWN} more")
    return _text(lines or ["no layers here"])


@contextmanager
def shown_verification(*, live: bool) -> Iterator[Progress]:
    """A bar on standard error when `live`, else nothing."""
    if not live:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def short(layer: CachedLayer) -> str:
    """The first twelve digits of a layer's digest; the layer key where that is not known."""
    return _short_digest(layer.digest, layer.layer)


def _short_digest(digest: str, key: str) -> str:
    return digest.removeprefix("sha256:")[:12] or key


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        last = column == columns[-1]
        table.add_column(
            column,
            no_wrap=True,
            justify="right" if column == "SIZE" else "left",
            overflow="ellipsis" if last else "fold",
            min_width=_WIDTHS.get(column),
        )
    return table


def _counted(layer: CachedLayer) -> str:
    """Users by kind: "by 2 snapshots, 1 mount"."""
    counts = Counter(user.kind.value for user in layer.used_by)
    words = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(counts.items())]
    return f"by {', '.join(words)}"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _users(layer: CachedLayer) -> str:
    """The first of its users by name, and how many more there are."""
    names = [f"{user.kind.value} {user.name}" for user in layer.used_by]
    more = f" and {len(names) - _USERS_SHOWN} more" if len(names) > _USERS_SHOWN else ""
    return f"{', '.join(names[:_USERS_SHOWN])}{more}"


def _images(layer: CachedLayer) -> str:
    """The first image without its registry, and how many more there are."""
    if not layer.images:
        return ""
    more = f" +{len(layer.images) - 1}" if len(layer.images) > 1 else ""
    return f"{layer.images[0].rpartition('/')[2]}{more}"


def _text(lines: Sequence[str]) -> Text:
    return Text("\n".join(lines))
