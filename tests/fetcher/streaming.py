"""A hand-made layer that is streamed from memory into a plain directory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import anyio.lowlevel

from fetcher.footer import parse_footer
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.stream import LayerStream, Pause, Placer
from fetcher.toc import parse_toc
from fetcher.tree import build_tree
from tests.estargz import Entry, Layer, file
from tests.fetcher.memory_blob import MemoryBlob


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(repr(seed)).randbytes(size)


def contents(entries: Sequence[Entry]) -> dict[str, bytes]:
    """What should be here of the entries, by path."""
    return {entry.name: entry.content for entry in entries if entry.content}


def numbered(count: int, size: int = 5000) -> list[Entry]:
    """d0/f0, d1/f1, d2/f2, d0/f3 and so on."""
    return [file(f"d{number % 3}/f{number}", noise(size, number)) for number in range(count)]


async def go_on(_count: int) -> None:
    await anyio.lowlevel.checkpoint()


def open_files(directory: str) -> int:
    """How many files below `directory` this process has open, named or not."""
    return sum(
        os.readlink(entry).startswith(f"{directory}/")
        for entry in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
        if os.path.lexists(entry)
    )


class StreamedLayer:
    """`blob` is where it comes from, `fs` where it goes to; both may be changed between runs."""

    def __init__(
        self,
        directory: Path,
        layer: Layer,
        *,
        blocks: Callable[[], Iterator[int]] = lambda: repeat(64 << 10),
        ends_at: int | None = None,
        on_block: Callable[[int], None] = lambda position: None,
    ) -> None:
        self.toc_offset = parse_footer(layer.blob, blob_size=len(layer.blob)).toc_offset
        self.tree = build_tree(parse_toc(layer.toc_json), end=self.toc_offset)
        self.fs = directory / "fs"
        self.fs.mkdir(exist_ok=True)
        self.plain = PlainLayer(str(self.fs), self.tree)
        self.progress = Progress(str(directory / "progress"))
        self.blob = MemoryBlob(layer.blob, blocks=blocks, ends_at=ends_at, on_block=on_block)

    async def run(
        self,
        start: int = 0,
        end: int | None = None,
        *,
        pause: Pause = go_on,
        threads: int = 0,
        placer: Placer | None = None,
    ) -> None:
        """Stream what is missing of [start, end), which is the whole layer if left out."""
        stream = LayerStream(
            self.blob,
            self.plain,
            self.progress,
            counter=Field.FETCHED_BACKGROUND,
            pause=pause,
            threads=threads,
            placer=placer,
        )
        await stream.run(start, self.toc_offset if end is None else end)

    def here(self) -> dict[str, bytes]:
        """The content of each file that is here, by path."""
        return {
            os.path.relpath(os.path.join(directory, name), self.fs): Path(directory, name).read_bytes()
            for directory, _, names in os.walk(self.fs)
            for name in names
        }

    def offset(self, path: str) -> int:
        """Where in the blob the file's first chunk is."""
        return self.tree.nodes[path].chunks[0].offset

    def open_files(self) -> int:
        """How many files of the plain directory this process has open, named or not."""
        return open_files(str(self.fs))
