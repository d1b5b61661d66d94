"""Streaming what is not what the table of contents promises, or to a disk that is full."""

from __future__ import annotations

import os
from itertools import repeat
from pathlib import Path

import pytest

from fetcher.errors import FetchError, StoreError, VerificationError
from fetcher.progress import Field
from tests.estargz import Toc as TocJson
from tests.estargz import (
    build,
    file,
)
from tests.fetcher.small_disk import small_disk
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("min_chunk_size", [0, 4000])
@pytest.mark.parametrize("chunk_size", [1000, 1 << 20])
async def test_damage_in_the_middle(tmp_path: Path, chunk_size: int, min_chunk_size: int) -> None:
    entries = numbered(9, 2500)
    built = build(entries, chunk_size=chunk_size, min_chunk_size=min_chunk_size, level=0)
    layer = StreamedLayer(tmp_path, built, blocks=lambda: repeat(700))
    bad = built.blob.index(entries[5].content[1200:1300])
    layer.blob.corrupt(bad)
    with pytest.raises(VerificationError, match="'d2/f5'"):
        await layer.run()
    assert layer.open_files() == 0
    assert layer.here() == contents(entries[:5])
    assert layer.progress[Field.STOP] == 0
    # A source that has it right brings the rest, and only that.
    layer.blob.corrupt(bad)
    layer.blob.requests.clear()
    await layer.run()
    assert layer.here() == contents(entries)
    assert layer.blob.requests[0][0] == layer.offset("d2/f5")


async def test_member_that_is_no_gzip(tmp_path: Path) -> None:
    entries = numbered(5)
    layer = StreamedLayer(tmp_path, build(entries))
    layer.blob.corrupt(layer.offset("d0/f3"))
    with pytest.raises(VerificationError, match="'d0/f3': the layer is damaged at byte"):
        await layer.run()
    assert layer.here() == contents(entries[:3])


async def test_large_member_that_is_no_gzip(tmp_path: Path) -> None:
    entries = [file("before", b"b"), file("large", noise(9 << 20))]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=16 << 20, level=0))
    layer.blob.corrupt(layer.offset("large") + 1)
    with pytest.raises(VerificationError, match="'large': the layer is damaged"):
        await layer.run()
    assert layer.here() == {"before": b"b"}


@pytest.mark.parametrize("block", [100, 1 << 20])
@pytest.mark.parametrize("large", [False, True])
async def test_blob_that_ends_early(tmp_path: Path, block: int, large: bool) -> None:
    entries = [file("a", b"a"), file("b", noise((9 << 20) if large else 9000)), file("c", b"c")]
    built = build(entries, chunk_size=16 << 20, level=1)
    start = StreamedLayer(tmp_path, built).offset("b")
    blocks = max(block, (9 << 20) // 500 if large else 0)
    for ends_at in (start + 5000, start + 1, start, start - 1):
        layer = StreamedLayer(tmp_path, built, ends_at=ends_at, blocks=lambda: repeat(blocks))
        with pytest.raises(FetchError, match="ends"):
            await layer.run()
        assert set(layer.here()) <= {"a"}
    layer = StreamedLayer(tmp_path, built)
    await layer.run()
    assert layer.here() == contents(entries)


async def test_blob_that_ends_in_what_is_skipped(tmp_path: Path) -> None:
    entries = numbered(6)
    built = build(entries)
    whole = StreamedLayer(tmp_path, built)
    await whole.run()
    os.unlink(whole.fs / "d0/f0")
    os.unlink(whole.fs / "d2/f5")
    layer = StreamedLayer(tmp_path, built, ends_at=whole.offset("d0/f3"))
    with pytest.raises(FetchError, match="ends"):
        await layer.run()
    assert layer.here() == contents(entries[:5])


@pytest.mark.parametrize("large", [False, True])
async def test_member_that_is_shorter_than_promised(tmp_path: Path, large: bool) -> None:
    content = noise((9 << 20) if large else 9000)

    def promise_more(toc: TocJson) -> None:
        toc["entries"][0]["size"] = len(content) + (1 << 20)

    layer = StreamedLayer(
        tmp_path, build([file("a", content)], chunk_size=16 << 20, level=1, toc_mutate=promise_more)
    )
    with pytest.raises(VerificationError, match="'a'"):
        await layer.run()
    assert layer.here() == {}


async def test_file_with_a_wrong_digest_for_one_of_its_chunks(tmp_path: Path) -> None:
    def swap(toc: TocJson) -> None:
        first, second = toc["entries"][1], toc["entries"][2]
        first["chunkDigest"], second["chunkDigest"] = second["chunkDigest"], first["chunkDigest"]

    entries = [file("a", b"a"), file("b", noise(2000))]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=1000, toc_mutate=swap))
    with pytest.raises(VerificationError, match="'b': the bytes at 0"):
        await layer.run()
    assert layer.here() == {"a": b"a"}


@pytest.mark.root
async def test_full_disk(tmp_path: Path) -> None:
    entries = [*numbered(4), file("large", noise(60_000)), file("more", noise(40_000, 1))]
    built = build(entries, chunk_size=16_000)
    with small_disk(str(tmp_path / "disk"), kilobytes=64) as disk:
        layer = StreamedLayer(Path(disk), built)
        with pytest.raises(StoreError, match="'large'"):
            await layer.run()
        assert layer.open_files() == 0
        assert layer.here() == contents(entries[:4])
        assert layer.progress[Field.STOP] == 0
