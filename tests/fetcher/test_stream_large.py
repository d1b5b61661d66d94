"""Streaming members that are too large to hold, or would be once inflated."""

from __future__ import annotations

import gzip
import hashlib
import os
import tracemalloc
from itertools import cycle
from pathlib import Path

import pytest

from fetcher.errors import VerificationError
from fetcher.placing import WHOLE_MEMBER, WHOLE_OUTPUT
from fetcher.toc import Toc, TocEntry
from fetcher.tree import build_tree
from tests.estargz import (
    Layer,
    build,
    file,
    footer_bytes,
)
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered

pytestmark = pytest.mark.anyio


async def test_member_that_is_streamed(tmp_path: Path) -> None:
    entries = [file("before", b"b"), file("large", noise(10 << 20), mode=0o640), file("after", noise(100, 1))]
    layer = StreamedLayer(
        tmp_path, build(entries, chunk_size=16 << 20, level=1), blocks=lambda: cycle([1 << 20, 12_345, 1])
    )
    member = layer.tree.members[1]
    assert member.end - member.offset > WHOLE_MEMBER
    await layer.run()
    assert layer.here() == contents(entries)
    assert os.stat(layer.fs / "large").st_mode & 0o777 == 0o640


async def test_large_member_that_several_files_share(tmp_path: Path) -> None:
    entries = [
        file("small", b"s" * 700),
        file("large", noise(9 << 20)),
        *numbered(5, 2000),
        file("big", noise(3 << 20, 1)),
    ]
    built = build(entries, chunk_size=5 << 20, min_chunk_size=64 << 20, level=1)
    layer = StreamedLayer(tmp_path, built)
    [member] = layer.tree.members
    assert member.end - member.offset > WHOLE_MEMBER
    await layer.run()
    assert layer.here() == contents(entries)
    # Again for one of them, in the middle of it.
    os.unlink(layer.fs / "d1/f1")
    inode = os.stat(layer.fs / "large").st_ino
    await layer.run()
    assert layer.here() == contents(entries)
    assert os.stat(layer.fs / "large").st_ino == inode


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
async def test_large_member_that_is_damaged(tmp_path: Path, where: str) -> None:
    # Stored, not deflated: the damage changes a byte of the content and nothing else.
    entries = [file("before", b"b"), file("large", noise(10 << 20)), file("after", b"a")]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=16 << 20, level=0))
    start = layer.offset("large")
    layer.blob.corrupt({"begin": start + 100, "middle": start + (5 << 20), "end": start + (10 << 20)}[where])
    with pytest.raises(VerificationError, match="'large'"):
        await layer.run()
    assert set(layer.here()) == {"before"}
    assert layer.open_files() == 0


async def test_zeros_are_inflated_within_bounded_memory(tmp_path: Path) -> None:
    """A few KB of compressed zeros that are all wanted, as a sparse file in a layer is."""
    size = 3 * WHOLE_OUTPUT
    entries = [file("zeros", bytes(size)), file("after", b"a")]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=1 << 30))
    member = layer.tree.members[0]
    assert member.end - member.offset < WHOLE_MEMBER
    tracemalloc.start()
    try:
        await layer.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < WHOLE_OUTPUT
    assert os.stat(layer.fs / "zeros").st_size == size
    assert layer.plain.drop_unverified() == 0


async def test_bomb_is_inflated_no_further_than_its_chunks(tmp_path: Path) -> None:
    """The member goes on for 256 MiB behind the four bytes that the TOC knows of."""
    bomb = gzip.compress(b"good" + bytes(256 << 20), 9)
    toc = Toc(
        version=1,
        entries=[
            TocEntry(
                name="a",
                type="reg",
                size=4,
                offset=0,
                chunk_digest="sha256:" + hashlib.sha256(b"good").hexdigest(),
            )
        ],
    )
    blob = bomb + b"in place of a TOC" + footer_bytes(len(bomb))
    layer = StreamedLayer(tmp_path, Layer(blob, "", 0, toc_json=b'{"version":1}'))
    layer.plain.tree = build_tree(toc, end=len(bomb))
    tracemalloc.start()
    try:
        await layer.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert layer.here() == {"a": b"good"}
