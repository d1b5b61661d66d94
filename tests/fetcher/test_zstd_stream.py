"""Streaming zstd:chunked layers into plain directories."""

from __future__ import annotations

import os
import tracemalloc
from itertools import cycle, repeat
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FetchError, VerificationError
from fetcher.placing import WHOLE_MEMBER, WHOLE_OUTPUT
from fetcher.progress import Field
from tests.estargz import Entry, file, landmark
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered
from tests.zstd_chunked import Variant, build_zstd

pytestmark = pytest.mark.anyio

HOLES = b"begin" + bytes(5000) + b"middle" + bytes(900) + b"end" + bytes(2000)


def various() -> list[Entry]:
    """Files of all sizes, some with holes."""
    return [
        file("zeros", bytes(7000)),
        file("first", b"f"),
        file("holes", HOLES),
        file("empty"),
        *numbered(20, 3000),
        file("last", noise(4001, "last")),
    ]


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("chunk_size", [1000, 1 << 20])
@pytest.mark.parametrize("block", [100, 3333, 1 << 20])
async def test_every_file_comes(tmp_path: Path, variant: Variant, chunk_size: int, block: int) -> None:
    entries = various()
    layer = StreamedLayer(
        tmp_path, build_zstd(entries, variant, chunk_size=chunk_size), blocks=lambda: repeat(block)
    )
    await layer.run()
    assert layer.here() == contents(entries)
    assert layer.progress[Field.BYTES_DONE] <= layer.toc_offset
    assert layer.plain.drop_unverified() == 0
    # One of them again, and nothing else.
    inode = os.stat(layer.fs / "first").st_ino
    os.unlink(layer.fs / "holes")
    layer.blob.requests.clear()
    await layer.run()
    assert layer.here() == contents(entries)
    assert os.stat(layer.fs / "first").st_ino == inode
    [(start, end)] = layer.blob.requests
    assert (start, end) == (layer.offset("holes"), layer.offset("d0/f0"))


async def test_members_that_several_files_share_and_a_prefetch_range(tmp_path: Path) -> None:
    entries = [*numbered(6, 3000), landmark(), file("behind", noise(9000))]
    layer = StreamedLayer(tmp_path, build_zstd(entries, chunk_size=2000, min_chunk_size=7000))
    assert layer.tree.landmark is not None
    assert len(layer.tree.members) < 8
    await layer.run(0, layer.tree.landmark)
    assert layer.here() == contents(numbered(6, 3000))
    await layer.run()
    assert layer.here() == contents([*numbered(6, 3000), file("behind", noise(9000))])


@pytest.mark.parametrize("variant", Variant)
async def test_member_that_is_streamed(tmp_path: Path, variant: Variant) -> None:
    entries = [file("before", b"b"), file("large", noise(10 << 20)), file("after", noise(100, 1))]
    layer = StreamedLayer(
        tmp_path,
        build_zstd(entries, variant, chunk_size=16 << 20, level=1),
        blocks=lambda: cycle([1 << 20, 12_345, 1]),
    )
    assert max(member.end - member.offset for member in layer.tree.members) > WHOLE_MEMBER
    await layer.run()
    assert layer.here() == contents(entries)


async def test_large_member_that_several_files_share(tmp_path: Path) -> None:
    entries = [file("small", b"s" * 700), file("large", noise(9 << 20)), *numbered(5, 2000)]
    layer = StreamedLayer(tmp_path, build_zstd(entries, chunk_size=5 << 20, min_chunk_size=64 << 20))
    assert len(layer.tree.members) == 1
    await layer.run()
    assert layer.here() == contents(entries)


@pytest.mark.parametrize("variant", Variant)
async def test_zeros_are_decompressed_within_bounded_memory(tmp_path: Path, variant: Variant) -> None:
    size = 3 * WHOLE_OUTPUT
    entries = [file("zeros", bytes(size)), file("after", b"a")]
    layer = StreamedLayer(tmp_path, build_zstd(entries, variant, chunk_size=1 << 30))
    tracemalloc.start()
    try:
        await layer.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < WHOLE_OUTPUT
    assert os.stat(layer.fs / "zeros").st_size == size
    assert layer.plain.drop_unverified() == 0


# Damage


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("chunk_size", [1000, 1 << 20])
async def test_damage_in_the_middle(tmp_path: Path, variant: Variant, chunk_size: int) -> None:
    entries = numbered(9, 2500)
    built = build_zstd(entries, variant, chunk_size=chunk_size)
    layer = StreamedLayer(tmp_path, built, blocks=lambda: repeat(700))
    bad = built.blob.index(entries[5].content[1200:1300])
    layer.blob.corrupt(bad)
    with pytest.raises(VerificationError, match="'d2/f5'"):
        await layer.run()
    assert layer.open_files() == 0
    assert layer.here() == contents(entries[:5])
    layer.blob.corrupt(bad)
    layer.blob.requests.clear()
    await layer.run()
    assert layer.here() == contents(entries)
    assert layer.blob.requests[0][0] == layer.offset("d2/f5")


@pytest.mark.parametrize("variant", Variant)
async def test_frame_that_is_none(tmp_path: Path, variant: Variant) -> None:
    entries = numbered(5)
    for position in (0, 1, 3):
        directory = tmp_path / str(position)
        directory.mkdir()
        layer = StreamedLayer(directory, build_zstd(entries, variant))
        layer.blob.corrupt(layer.offset("d0/f3") + position)
        with pytest.raises(VerificationError, match="'d0/f3': the layer is damaged at byte"):
            await layer.run()
        assert layer.here() == contents(entries[:3])


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
async def test_large_frame_that_is_damaged(tmp_path: Path, where: str) -> None:
    entries = [file("before", b"b"), file("large", noise(10 << 20)), file("after", b"a")]
    layer = StreamedLayer(tmp_path, build_zstd(entries, chunk_size=16 << 20))
    start = layer.offset("large")
    layer.blob.corrupt({"begin": start + 2, "middle": start + (5 << 20), "end": start + (10 << 20)}[where])
    with pytest.raises(VerificationError, match="'large'"):
        await layer.run()
    assert set(layer.here()) == {"before"}
    assert layer.open_files() == 0


@pytest.mark.parametrize("large", [False, True])
async def test_blob_that_ends_early(tmp_path: Path, large: bool) -> None:
    entries = [file("a", b"a"), file("b", noise((9 << 20) if large else 9000)), file("c", b"c")]
    built = build_zstd(entries, chunk_size=16 << 20, level=1)
    start = StreamedLayer(tmp_path, built).offset("b")
    for ends_at in (start + 5000, start + 1, start, start - 1):
        layer = StreamedLayer(tmp_path, built, ends_at=ends_at, blocks=lambda: repeat(20_000))
        with pytest.raises(FetchError, match="ends"):
            await layer.run()
        assert set(layer.here()) <= {"a"}


@settings(deadline=None, max_examples=30)
@given(position=st.integers(0, 1 << 30), flip=st.integers(1, 255), variant=st.sampled_from(Variant))
def test_any_changed_byte_gives_right_files_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, variant: Variant
) -> None:
    entries = various()
    layer = StreamedLayer(
        tmp_path_factory.mktemp("changed"), build_zstd(entries, variant, chunk_size=1500, min_chunk_size=4000)
    )
    layer.blob.corrupt(position % layer.toc_offset, flip=flip)
    try:
        anyio.run(layer.run)
    except FetchError:
        assert contents(entries).items() >= layer.here().items()
    else:
        assert layer.here() == contents(entries)
