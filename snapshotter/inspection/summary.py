"""A table of contents in short and in full. Pure; no I/O.

The structs are the JSON of `layergate toc`: fields are added, never renamed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import msgspec

from fetcher.nodes import Kind, Node
from fetcher.tree import LayerTree
from snapshotter.inspection.contents import Format, LayerToc, prefetched
from snapshotter.inspection.layers import SourceLayer
from snapshotter.inspection.verifying import Fault


class Prefetch(msgspec.Struct, frozen=True):
    """What the landmark says: "prefetch", "no-prefetch", or "none" where there is none.

    `size` is how many bytes of the blob are before it, `files` how many files and `files_bytes` theirs.
    """

    landmark: str
    size: int
    files: int
    files_bytes: int


class TocSummary(msgspec.Struct, frozen=True):
    """What a table of contents lists, in numbers. Sizes in bytes, `files_bytes` of files unpacked.

    `promised` says whether its digest is the one that the manifest promises; None if it promises none.
    """

    digest: str
    promised: bool | None
    offset: int
    entries: int
    files: int
    files_bytes: int
    chunks: int
    prefetch: Prefetch


class EntryRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One path. What a kind of entry does not have is left out; `link` is the first path of a hard link."""

    path: str
    type: str
    mode: str
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: str = ""
    link: str = ""
    device: str = ""
    xattrs: dict[str, str] = {}
    opaque: bool = False
    chunks: list[ChunkRecord] = []


class ChunkRecord(msgspec.Struct, frozen=True):
    """A piece of a file, `inner_offset` bytes into what the member at [offset, end) of the blob holds."""

    offset: int
    end: int
    inner_offset: int
    file_offset: int
    size: int
    digest: str


class LayerRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One layer; `format` is "estargz", "zstd:chunked", "tar", "tar+gzip", "tar+zstd" or "other".

    `description` says the same in words. `toc` is None without one.
    """

    number: int
    digest: str | None
    size: int
    format: str
    description: str
    toc: TocSummary | None
    media_type: str | None = None
    entries: list[EntryRecord] | None = None
    faults: list[Fault] | None = None


class ImageRecord(msgspec.Struct, frozen=True):
    """What SRC is."""

    source: str
    manifest: str | None
    layers: list[LayerRecord]


def layer_record(
    layer: SourceLayer,
    found: Format,
    toc: LayerToc | None,
    *,
    entries: bool,
    faults: list[Fault] | None = None,
) -> LayerRecord:
    """A layer in short, or with its `entries`."""
    return LayerRecord(
        number=layer.number,
        digest=layer.digest,
        size=found.size,
        format=found.name,
        description=found.description,
        toc=None if toc is None else _summary(toc),
        media_type=layer.media_type,
        entries=None if toc is None or not entries else list(entry_records(toc.tree)),
        faults=faults,
    )


def entry_records(tree: LayerTree) -> Iterable[EntryRecord]:
    """Every path, in the order of the paths."""
    return (_entry(path, tree.nodes[path]) for path in sorted(tree.nodes))


def _summary(toc: LayerToc) -> TocSummary:
    files = [node for node in toc.tree.inodes() if node.kind is Kind.REGULAR]
    before = prefetched(toc)
    return TocSummary(
        digest=toc.digest,
        promised=toc.matches,
        offset=toc.offset,
        entries=len(toc.tree.nodes),
        files=len(files),
        files_bytes=sum(node.size for node in files),
        chunks=sum(len(node.chunks) for node in files),
        prefetch=Prefetch(
            toc.landmark, toc.tree.landmark or 0, len(before), sum(node.size for node in before)
        ),
    )


def _entry(path: str, node: Node) -> EntryRecord:
    is_device = node.kind in (Kind.CHARACTER, Kind.BLOCK)
    primary = node.path == path
    return EntryRecord(
        path=path,
        type=node.kind.value,
        mode=f"{node.mode:04o}",
        uid=node.uid,
        gid=node.gid,
        mtime=node.mtime,
        size=node.size,
        target=node.target,
        link="" if primary else node.path,
        device=f"{node.major}:{node.minor}" if is_device else "",
        xattrs={name: base64.b64encode(value).decode() for name, value in sorted(node.xattrs.items())},
        opaque=node.opaque,
        chunks=[
            ChunkRecord(
                chunk.offset,
                chunk.end,
                chunk.inner_offset,
                chunk.file_offset,
                chunk.size,
                f"sha256:{chunk.digest.hex()}",
            )
            for chunk in (node.chunks if primary else ())
        ],
    )
