"""The plain directory of a hand-made layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fetcher.plain import PlainLayer
from fetcher.toc import parse_toc
from fetcher.tree import build_tree
from tests.estargz import (
    Entry,
    build,
)


class Planted:
    """The plain directory of a hand-made layer, and the contents that its files should have."""

    def __init__(self, directory: Path, entries: Sequence[Entry], *, chunk_size: int = 4 << 20) -> None:
        directory.mkdir(exist_ok=True)
        layer = build(entries, chunk_size=chunk_size)
        tree = build_tree(parse_toc(layer.toc_json), end=len(layer.blob))
        self.plain = PlainLayer(str(directory), tree)
        self.contents = {entry.name: entry.content for entry in entries if entry.content}

    def write(self, *paths: str) -> None:
        for path in paths or self.contents:
            self.plain.write(self.plain.tree.nodes[path], self.contents[path])

    def complete(self) -> None:
        self.plain.make_directories()
        self.write()
        self.plain.finish()


def planted(directory: Path, *entries: Entry, chunk_size: int = 4 << 20) -> Planted:
    return Planted(directory / "fs", entries, chunk_size=chunk_size)
