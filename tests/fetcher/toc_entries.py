"""Entries of a table of contents by hand, and the tree that they make."""

from __future__ import annotations

import hashlib

import pytest
from msgspec import structs

from fetcher.errors import InvalidToc
from fetcher.nodes import Kind
from fetcher.toc import Toc, TocEntry
from fetcher.tree import LayerTree, build_tree

END = 1_000_000


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


SOME = digest(b"some")


def entry(name: str, type: str = "dir", **fields: object) -> TocEntry:
    """`fields` are those of TocEntry."""
    return structs.replace(TocEntry(name=name, type=type), **fields)


def reg(name: str, offset: int = 0, size: int = 4, **fields: object) -> TocEntry:
    return entry(name, "reg", **{"size": size, "offset": offset, "chunk_digest": SOME, **fields})


def chunk(name: str, offset: int, chunk_offset: int, chunk_size: int = 0, **fields: object) -> TocEntry:
    """A `chunk_size` of 0 reaches to the end of the file."""
    place = {"offset": offset, "chunk_offset": chunk_offset, "chunk_size": chunk_size}
    return entry(name, "chunk", **{**place, "chunk_digest": SOME, **fields})


def tree(*entries: TocEntry, end: int = END) -> LayerTree:
    """`end` is where the layer's members end, in bytes."""
    return build_tree(Toc(version=1, entries=list(entries)), end=end)


def refused(match: str, *entries: TocEntry, end: int = END) -> None:
    """Assert that no tree is made of the entries, for this reason."""
    with pytest.raises(InvalidToc, match=match):
        tree(*entries, end=end)


def kinds(layer: LayerTree) -> dict[str, Kind]:
    return {path: node.kind for path, node in layer.nodes.items()}
