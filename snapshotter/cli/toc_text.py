"""Tables of contents on a terminal: tables that fit 80 columns, and trees as `ls -l` has them."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fetcher.reference import short_digest
from snapshotter.cache.quantities import size_text
from snapshotter.cli.looking import printable
from snapshotter.inspection.summary import EntryRecord, ImageRecord, LayerRecord, Prefetch

_FAULTS_SHOWN: Final = 20
_FORMATS: Final = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "whiteout": stat.S_IFCHR,
}


def tables(image: ImageRecord) -> RenderableType:
    """`toc`: a line for each layer, and what is to be said of single ones."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("#", "LAYER", "FORMAT", "SIZE", "ENTRIES", "UNPACKED", "CHUNKS", "PREFETCH"):
        text = column in ("LAYER", "FORMAT", "PREFETCH")
        table.add_column(column, justify="left" if text else "right", no_wrap=column != "PREFETCH")
    for layer in image.layers:
        toc = layer.toc
        table.add_row(
            str(layer.number),
            _short(layer),
            layer.format,
            size_text(layer.size),
            *(("-", "-", "-", "-") if toc is None else ()),
            *(
                ()
                if toc is None
                else (str(toc.entries), size_text(toc.files_bytes), str(toc.chunks), _prefetch(toc.prefetch))
            ),
        )
    notes = []
    for layer in image.layers:
        if layer.toc is None:
            notes.append(f"layer {layer.number} is {layer.description}")
        elif layer.toc.promised is False:
            notes.append(f"layer {layer.number} has another table of contents than the image promises")
        elif layer.toc.promised is None and image.manifest is not None:
            notes.append(f"layer {layer.number} has a table of contents that the image does not vouch for")
    return Group(Text(_title(image)), table, *map(Text, notes))


def verdicts(image: ImageRecord) -> RenderableType:
    """`toc --verify`: a line for each layer, and what is wrong with it."""
    lines = [_title(image)]
    for layer in image.layers:
        faults, toc = layer.faults or [], layer.toc
        name = f"{layer.number} {_short(layer)}"
        if faults:
            lines.append(f"{name}  damaged:")
        elif toc is None:
            verified = "nothing to verify" if layer.digest is None else "its digest is right"
            lines.append(f"{name}  {verified}: {layer.description}")
        else:
            lines.append(
                f"{name}  intact: {toc.files} files, {toc.chunks} chunks, {size_text(toc.files_bytes)}"
            )
        for fault in faults[:_FAULTS_SHOWN]:
            where = "" if fault.path is None else f"{printable(fault.path)}: "
            lines.append(f"  {where}{printable(fault.reason)}")
        if len(faults) > _FAULTS_SHOWN:
            lines.append(f"  and {len(faults) - _FAULTS_SHOWN} more")
    return Text("\n".join(lines))


def tree_lines(image: ImageRecord) -> Iterator[str]:
    """`toc --tree`: the layers, and in each every path."""
    for layer in image.layers:
        yield f"layer {layer.number} {_short(layer)}: {layer.description}"
        for entry in layer.entries or ():
            yield _entry_line(entry)


def _entry_line(entry: EntryRecord) -> str:
    mode = stat.filemode(_FORMATS[entry.type] | int(entry.mode, 8))
    owner = f"{entry.uid}:{entry.gid}"
    size = entry.device.replace(":", ", ") or (str(entry.size) if entry.type == "reg" else "-")
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(entry.mtime))
    line = f"{mode} {owner:>9} {size:>10} {when} {printable(entry.path) or '.'}"
    if entry.target:
        line += f" -> {printable(entry.target)}"
    if entry.link:
        line += f" = {printable(entry.link)}"
    if entry.type == "whiteout":
        line += " (whiteout)"
    if entry.opaque:
        line += " (opaque)"
    if entry.xattrs:
        line += f" [{', '.join(map(printable, entry.xattrs))}]"
    return line


def _title(image: ImageRecord) -> str:
    return image.source if image.manifest is None else f"{image.source} {short_digest(image.manifest)}"


def _short(layer: LayerRecord) -> str:
    return "(a file)" if layer.digest is None else layer.digest.removeprefix("sha256:")[:12]


def _prefetch(prefetch: Prefetch) -> str:
    if prefetch.landmark == "prefetch":
        files = "1 file" if prefetch.files == 1 else f"{prefetch.files} files"
        return f"{size_text(prefetch.size)}, {files}"
    return {"no-prefetch": "none"}.get(prefetch.landmark, "no landmark")
