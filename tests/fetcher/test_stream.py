"""Streaming: whatever the blob does, a file is here whole and verified or not at all."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import tempfile
import tracemalloc
from collections.abc import Sequence
from itertools import cycle, pairwise, repeat
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.errors import FetchError, StoreError, VerificationError
from fetcher.progress import Field
from fetcher.stream import WHOLE_MEMBER, WHOLE_OUTPUT, missing_spans
from fetcher.toc import Toc, TocEntry
from fetcher.tree import build_tree
from tests import trees
from tests.estargz import (
    Entry,
    Layer,
    build,
    dir,
    file,
    footer_bytes,
    hardlink,
    landmark,
    opaque,
    symlink,
    whiteout,
)
from tests.estargz import Toc as TocJson
from tests.fetcher.small_disk import small_disk
from tests.fetcher.streaming import StreamedLayer

pytestmark = pytest.mark.anyio


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that cannot be compressed."""
    return random.Random(repr(seed)).randbytes(size)


def contents(entries: Sequence[Entry]) -> dict[str, bytes]:
    return {entry.name: entry.content for entry in entries if entry.content}


def numbered(count: int, size: int = 5000) -> list[Entry]:
    return [file(f"d{number % 3}/f{number}", noise(size, number)) for number in range(count)]


# A layer that is not here yet


@pytest.mark.parametrize("block", [1, 7, 100, 4096, 1 << 20])
async def test_whole_layer_in_one_request(tmp_path: Path, block: int) -> None:
    entries = [*numbered(5, 300), file("big", noise(2000)), file("empty"), file("text", b"a" * 9000)]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=900), blocks=lambda: repeat(block))
    await layer.run()
    assert layer.here() == contents(entries)
    assert layer.blob.requests == [(layer.offset("d0/f0"), layer.toc_offset)]


async def test_counters(tmp_path: Path) -> None:
    entries = numbered(9)
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=2000))
    seen: list[tuple[int, int]] = []

    async def pause(count: int) -> None:
        seen.append((count, layer.progress[Field.STOP]))

    await layer.run(pause=pause)
    assert layer.progress[Field.FILES_DONE] == 9
    assert layer.progress[Field.BYTES_DONE] == layer.toc_offset - layer.offset("d0/f0")
    assert layer.progress[Field.FETCHED_BACKGROUND] == layer.blob.sent == sum(count for count, _ in seen)
    assert layer.progress[Field.POSITION] == layer.toc_offset
    assert {stop for count, stop in seen if count} == {layer.toc_offset}
    assert layer.progress[Field.STOP] == 0


async def test_layer_without_files_costs_no_request(tmp_path: Path) -> None:
    for number, entries in enumerate(([], [dir("a/"), file("empty"), symlink("s", "x"), whiteout("w")])):
        directory = tmp_path / str(number)
        directory.mkdir()
        layer = StreamedLayer(directory, build(entries))
        await layer.run()
        assert (layer.blob.requests, layer.here()) == ([], {})


@pytest.mark.parametrize("min_chunk_size", [3000, 40_000, 1 << 20])
async def test_members_that_several_files_share(tmp_path: Path, min_chunk_size: int) -> None:
    entries = [*numbered(12, 1500), file("big", noise(9000)), *(file(f"s{n}", b"%d" % n) for n in range(50))]
    built = build(entries, chunk_size=4000, min_chunk_size=min_chunk_size)
    layer = StreamedLayer(tmp_path, built, blocks=lambda: repeat(777))
    assert len(layer.tree.members) < 60
    await layer.run()
    assert layer.here() == contents(entries)


async def test_toc_without_chunk_digests(tmp_path: Path) -> None:
    entries = numbered(5)
    layer = StreamedLayer(tmp_path, build(entries, omit_chunk_digests=True, legacy_footer=True))
    await layer.run()
    assert layer.here() == contents(entries)


@pytest.mark.root
async def test_whole_layer_with_everything_in_it(tmp_path: Path) -> None:
    entries = [
        dir("d/", mode=0o700, mtime=5), file("d/a", noise(5000), mode=0o4755, uid=3), hardlink("d/b", "d/a"),
        symlink("s", "d/a"), whiteout("d/w"), opaque("o/"), landmark(), file("d/c", b"c", mtime=7),
    ]  # fmt: skip
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=1000, prefix="./"))
    layer.plain.make_directories()
    await layer.run(0, layer.tree.landmark)
    assert set(layer.here()) == {"d/a"}
    await layer.run()
    layer.plain.finish()
    found = trees.scan(str(layer.fs))
    assert set(found) == {".", "d", "d/a", "d/b", "d/c", "d/w", "o", "s"}
    assert (found["d/a"].mode, found["d/a"].uid, found["d"].mtime, found["d/c"].mtime) == (0o4755, 3, 5, 7)
    assert found["d/a"].links == {"d/a", "d/b"}
    assert found["d/a"].content == hashlib.sha256(noise(5000)).hexdigest()


# Parts of it are here


async def test_only_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    entries = numbered(9, 800 << 10)
    layer = StreamedLayer(tmp_path, build(entries))
    await layer.run()
    inodes = {path: os.stat(layer.fs / path).st_ino for path in layer.here()}
    layer.blob.requests.clear()
    for path in ("d1/f1", "d2/f2", "d1/f7"):
        os.unlink(layer.fs / path)
    await layer.run()
    # f3 to f6 are more than a request is worth, what is between two neighbours is not.
    assert layer.blob.requests == [
        (layer.offset("d1/f1"), layer.offset("d0/f3")),
        (layer.offset("d1/f7"), layer.offset("d2/f8")),
    ]
    assert layer.here() == contents(entries)
    kept = {path: os.stat(layer.fs / path).st_ino for path in inodes}
    assert {path for path in inodes if kept[path] == inodes[path]} >= set(inodes) - {
        "d1/f1",
        "d2/f2",
        "d1/f7",
    }
    layer.blob.requests.clear()
    await layer.run()
    assert layer.blob.requests == []


async def test_small_gaps_are_read_over(tmp_path: Path) -> None:
    entries = numbered(9)
    layer = StreamedLayer(tmp_path, build(entries), blocks=lambda: repeat(1000))
    await layer.run()
    layer.blob.requests.clear()
    os.unlink(layer.fs / "d1/f1")
    os.unlink(layer.fs / "d1/f7")
    before = {path: os.stat(layer.fs / path).st_ino for path in layer.here()}
    await layer.run()
    assert layer.blob.requests == [(layer.offset("d1/f1"), layer.offset("d2/f8"))]
    assert layer.here() == contents(entries)
    assert {path: os.stat(layer.fs / path).st_ino for path in before} == before


async def test_missing_spans_of_a_file_with_many_chunks(tmp_path: Path) -> None:
    layer = StreamedLayer(tmp_path, build([file("a", noise(5000)), *numbered(3)], chunk_size=1000))
    await layer.run()
    os.unlink(layer.fs / "a")
    [span] = missing_spans(layer.plain, 0, layer.toc_offset)
    assert (span.start, span.end) == (layer.offset("a"), layer.offset("d0/f0"))
    assert len(span.members) == 5
    # The prefetch range ends within the file: it belongs to what comes after.
    middle = layer.tree.nodes["a"].chunks[3].offset
    assert missing_spans(layer.plain, 0, middle) == []
    [span] = missing_spans(layer.plain, middle, layer.toc_offset)
    assert span.start == layer.offset("a")


@pytest.mark.parametrize("cut", range(12))
async def test_two_runs_that_meet_anywhere_bring_everything(tmp_path: Path, cut: int) -> None:
    entries = [file("a", noise(3500)), file("b", b"b"), file("c", noise(2500, 1)), file("d", noise(10, 2))]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=1000, min_chunk_size=1500))
    middle = layer.toc_offset * cut // 11
    await layer.run(0, middle)
    whole = [node.path for node in layer.tree.regular_files() if node.chunks[-1].offset < middle]
    assert sorted(layer.here()) == sorted(whole)
    await layer.run(middle)
    assert layer.here() == contents(entries)


async def test_stream_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    entries = numbered(40)

    class Stopped(Exception):
        pass

    def stop(position: int) -> None:
        if position > 100_000 and armed:
            raise Stopped

    armed = True
    layer = StreamedLayer(
        tmp_path, build(entries, chunk_size=2000), on_block=stop, blocks=lambda: repeat(9000)
    )
    with pytest.raises(Stopped):
        await layer.run()
    assert layer.open_files() == 0
    done = len(layer.here())
    assert 15 < done < 25
    assert layer.progress[Field.FILES_DONE] == done
    assert layer.progress[Field.STOP] == 0
    armed = False
    await layer.run()
    assert layer.here() == contents(entries)
    assert layer.blob.requests[1] == (layer.offset(f"d{done % 3}/f{done}"), layer.toc_offset)


async def test_cancellation_leaves_no_file_open(tmp_path: Path) -> None:
    layer = StreamedLayer(tmp_path, build(numbered(10), chunk_size=1000), blocks=lambda: repeat(500))
    with anyio.CancelScope() as scope:

        async def pause(_count: int) -> None:
            if layer.progress[Field.POSITION] > 20_000:
                scope.cancel()
            await anyio.lowlevel.checkpoint()

        await layer.run(pause=pause)
    assert scope.cancelled_caught
    assert layer.open_files() == 0
    assert 0 < len(layer.here()) < 10
    assert layer.progress[Field.STOP] == 0


async def test_file_that_another_writer_brings_meanwhile(tmp_path: Path) -> None:
    entries = [file("a", noise(5000)), file("b", noise(5000, 1)), file("c", noise(5000, 2))]

    def bring(position: int) -> None:
        # When the stream has half of "b", an open of it has been served, and one of "c".
        if position > layer.offset("b") + 1500:
            for path in ("b", "c"):
                layer.plain.write(layer.tree.nodes[path], contents(entries)[path])
                inodes.setdefault(path, os.stat(layer.fs / path).st_ino)

    inodes: dict[str, int] = {}
    layer = StreamedLayer(
        tmp_path, build(entries, chunk_size=1000), on_block=bring, blocks=lambda: repeat(500)
    )
    await layer.run()
    assert layer.here() == contents(entries)
    assert {path: os.stat(layer.fs / path).st_ino for path in inodes} == inodes
    assert layer.progress[Field.FILES_DONE] == 1
    assert layer.open_files() == 0


async def test_two_streams_of_one_layer(tmp_path: Path) -> None:
    entries = numbered(30)
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=1500), blocks=lambda: repeat(1000))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(layer.run)
        tasks.start_soon(layer.run)
    assert layer.here() == contents(entries)
    assert layer.progress[Field.FILES_DONE] == 30


# Members too large to hold


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
    layer = StreamedLayer(tmp_path, Layer(bomb + footer_bytes(len(bomb)), "", 0, toc_json=b'{"version":1}'))
    layer.plain.tree = build_tree(toc, end=len(bomb))
    tracemalloc.start()
    try:
        await layer.run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert layer.here() == {"a": b"good"}


# Blobs that are not what the TOC promises


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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_never_shows_a_wrong_file(data: st.DataObject) -> None:
    entries = [*numbered(4, 700), file("text", b"text " * 300), file("zeros", bytes(3000)), file("one", b"1")]
    built = build(entries, chunk_size=500, min_chunk_size=data.draw(st.sampled_from([0, 900])))
    with tempfile.TemporaryDirectory() as directory:
        layer = StreamedLayer(Path(directory), built, blocks=lambda: repeat(300))
        for _ in range(data.draw(st.integers(1, 3))):
            layer.blob.corrupt(
                data.draw(st.integers(0, layer.toc_offset - 1)), flip=data.draw(st.integers(1, 255))
            )
        try:
            anyio.run(layer.run)
            complete = True
        except VerificationError:
            complete = False
        assert layer.open_files() == 0
        expected = contents(entries)
        assert all(expected[path] == content for path, content in layer.here().items())
        assert not complete or layer.here() == expected


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


# The disk refuses


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


# Anything at all

_sizes = st.integers(0, 3000) | st.sampled_from([0, 1, 511, 512, 513, 1024])
_files = st.lists(st.tuples(st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), _sizes), max_size=12)


class _Halted(Exception):
    pass


@settings(deadline=None, max_examples=80)
@given(
    files=_files,
    chunk_size=st.integers(100, 2000),
    min_chunk_size=st.sampled_from([0, 0, 700, 5000]),
    blocks=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    halt=st.none() | st.floats(0, 1),
    here=st.sets(st.integers(0, 11)),
)
def test_any_layer_in_any_blocks_and_runs(
    files: list[tuple[str, int]],
    chunk_size: int,
    min_chunk_size: int,
    blocks: list[int],
    cuts: list[float],
    halt: float | None,
    here: set[int],
) -> None:
    entries = [
        file(f"{directory}{number}", noise(size // 2, number) + bytes(size - size // 2))
        for number, (directory, size) in enumerate(files)
    ]
    expected = contents(entries)

    def on_block(position: int) -> None:
        present = layer.here()
        assert all(expected[path] == content for path, content in present.items()), "a partial file is seen"
        if halt is not None and not halted and position >= halt * layer.toc_offset:
            halted.append(position)
            raise _Halted

    halted: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        layer = StreamedLayer(
            Path(directory),
            build(entries, chunk_size=chunk_size, min_chunk_size=min_chunk_size),
            blocks=lambda: cycle(blocks),
            on_block=on_block,
        )
        for number in here:
            path = entries[number].name if number < len(entries) else ""
            if path in expected:
                layer.plain.write(layer.tree.nodes[path], expected[path])
        inodes = {path: os.stat(layer.fs / path).st_ino for path in layer.here()}

        async def run_all() -> None:
            edges = [0, *sorted(int(cut * layer.toc_offset) for cut in cuts), layer.toc_offset]
            for start, end in pairwise(edges):
                try:
                    await layer.run(start, end)
                except _Halted:
                    await layer.run(start, end)

        anyio.run(run_all)
        assert layer.here() == expected
        assert {path: os.stat(layer.fs / path).st_ino for path in inodes} == inodes
        assert layer.progress[Field.FILES_DONE] == len(expected) - len(inodes)
        assert layer.open_files() == 0
