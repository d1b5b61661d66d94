"""A comparison of two images on a terminal, in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fetcher.reference import short_digest
from snapshotter.cache.quantities import size_text
from snapshotter.cli.looking import printable
from snapshotter.inspection.comparing import (
    Change,
    Comparison,
    Difference,
    ImageSide,
    LayerPair,
    LayerSide,
    Value,
)

_SHOWN: Final = 40
"""Differences of the trees; all are in --json."""
_NAMES_SHOWN: Final = 3


def comparison(found: Comparison) -> RenderableType:
    """The images, their layers side by side, and what differs."""
    parts: list[RenderableType] = [
        _images(found.a, found.b),
        Text(),
        _layers(found.layers),
        *_prefetches(found.layers),
        Text(),
    ]
    if found.equal:
        parts.append(Text(f"the trees are equal: {found.a.entries} entries"))
        return Group(*parts)
    parts.append(Text(f"the trees differ in {_counted(len(found.differences), 'path')}:"))
    parts += [Text(line, no_wrap=False) for line in _difference_lines(found.differences)]
    return Group(*parts)


def _images(a: ImageSide, b: ImageSide) -> Table:
    table = _table(("", False), ("SIZE", True), ("ENTRIES", True), ("UNPACKED", True), ("IMAGE", False))
    for name, side in (("A", a), ("B", b)):
        manifest = "" if side.manifest is None else f" {short_digest(side.manifest)}"
        table.add_row(
            name,
            size_text(side.size),
            str(side.entries),
            size_text(side.files_bytes),
            printable(side.source) + manifest,
        )
    return table


def _layers(pairs: Sequence[LayerPair]) -> Table:
    table = _table(
        ("#", True),
        ("A", False),
        ("SIZE", True),
        ("FORMAT", False),
        ("B", False),
        ("SIZE", True),
        ("FORMAT", False),
        ("TREES", False),
    )
    for pair in pairs:
        table.add_row(str(pair.number), *_side(pair.a), *_side(pair.b), _verdict(pair))
    return table


def _side(side: LayerSide | None) -> tuple[str, str, str]:
    if side is None:
        return "-", "", ""
    return (
        (side.digest or "").removeprefix("sha256:")[:8],
        size_text(side.size),
        side.format,
    )


def _verdict(pair: LayerPair) -> str:
    if pair.a is None or pair.b is None:
        return "only in " + ("B" if pair.a is None else "A")
    if pair.a.digest == pair.b.digest:
        return "identical"
    return "equal" if pair.equal else f"{len(pair.differences)} differ"


def _prefetches(pairs: Sequence[LayerPair]) -> list[RenderableType]:
    """What is before the landmarks, where the sides differ in it."""
    lines = []
    for pair in pairs:
        a, b = _prefetch(pair.a), _prefetch(pair.b)
        if a == b:
            continue
        lines.append(f"layer {pair.number} prefetch: {a} in A, {b} in B")
        lines += [
            f"  only in {name}: {_listed(files)}"
            for name, files in (("A", _only(pair.a, pair.b)), ("B", _only(pair.b, pair.a)))
            if files
        ]
    return [Text(line) for line in lines]


def _only(side: LayerSide | None, other: LayerSide | None) -> list[str]:
    """The files before one side's landmark that are not before the other's."""
    known = set() if other is None else set(other.prefetch_files)
    return [path for path in (side.prefetch_files if side else ()) if path not in known]


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
    return ", ".join(map(printable, paths[:_NAMES_SHOWN])) + more


def _prefetch(side: LayerSide | None) -> str:
    if side is None or side.landmark != "prefetch":
        return "none"
    return f"{size_text(side.prefetch_bytes)}, {_counted(len(side.prefetch_files), 'file')}"


def _difference_lines(differences: Sequence[Difference]) -> list[str]:
    lines = []
    for difference in differences[:_SHOWN]:
        path = printable(difference.path) or "."
        first = difference.changes[0]
        if first.aspect == "kind" and (first.a is None or first.b is None):
            side, kind = ("B", first.b) if first.a is None else ("A", first.a)
            lines.append(f"  {path}: only in {side} ({kind})")
        else:
            lines.append(f"  {path}: {'; '.join(map(_change, difference.changes))}")
    if len(differences) > _SHOWN:
        lines.append(f"  and {len(differences) - _SHOWN} more: see --json")
    return lines


def _change(change: Change) -> str:
    if change.aspect in ("content", "xattrs"):
        return f"other {change.aspect}"
    return f"{change.aspect} {_value(change.aspect, change.a)} in A, {_value(change.aspect, change.b)} in B"


def _value(aspect: str, value: Value) -> str:
    if aspect == "mtime" and isinstance(value, int):
        try:
            return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S")
        except (OverflowError, ValueError):
            return str(value)
    if isinstance(value, list):
        return printable(", ".join(value)) or "none"
    return printable(str(value))


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "IMAGE", overflow="fold")
    return table
