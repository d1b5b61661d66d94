"""Streaming: a layer comes whole, or what of it is missing does."""

from __future__ import annotations

import hashlib
import os
from itertools import repeat
from pathlib import Path

import anyio
import pytest

from fetcher.progress import Field
from fetcher.stream import missing_spans
from tests import trees
from tests.estargz import (
    build,
    dir,
    file,
    hardlink,
    landmark,
    opaque,
    symlink,
    whiteout,
)
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize(
    ("brought", "asked"),
    [(range(2, 8), ["d0/f0", "d2/f8"]), (range(2, 9), ["d0/f0"]), (range(2, 6), ["d0/f0"])],
    ids=["all but the last", "all", "less than a connection is worth"],
)
async def test_what_others_bring_during_a_pause_is_not_read(
    tmp_path: Path, brought: range, asked: list[str]
) -> None:
    entries = numbered(9, 900 << 10)
    layer = StreamedLayer(tmp_path, build(entries))

    async def pause(_count: int) -> None:
        if len(layer.here()) == 2:
            for number in brought:
                assert layer.plain.write(layer.tree.nodes[entries[number].name], entries[number].content)
            await anyio.sleep(0.05)

    await layer.run(pause=pause)
    assert layer.blob.requests == [(layer.offset(path), layer.toc_offset) for path in asked]
    assert layer.here() == contents(entries)
    everything = layer.toc_offset - layer.offset("d0/f0")
    assert layer.progress[Field.BYTES_DONE] == everything
    assert layer.progress[Field.FILES_DONE] == 9 - len(brought)
    left = len(brought) > 4
    assert (layer.progress[Field.FETCHED_BACKGROUND] < everything / 2) == left


async def test_a_file_of_many_chunks_that_others_bring_is_left_in_the_middle(tmp_path: Path) -> None:
    entries = [file("large", noise(8 << 20)), file("last", b"last")]
    layer = StreamedLayer(tmp_path, build(entries, chunk_size=256 << 10))
    node = layer.tree.nodes["large"]

    async def pause(_count: int) -> None:
        if layer.progress[Field.POSITION] > node.chunks[3].offset and layer.plain.write(node, noise(8 << 20)):
            await anyio.sleep(0.05)

    await layer.run(pause=pause)
    assert [start for start, _ in layer.blob.requests] == [layer.offset("large"), layer.offset("last")]
    assert layer.here() == contents(entries)
    assert layer.open_files() == 0
    assert layer.progress[Field.BYTES_DONE] == layer.toc_offset - layer.offset("large")
