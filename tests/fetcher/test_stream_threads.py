"""Streaming large members in threads."""

from __future__ import annotations

import os
import threading
from itertools import repeat
from pathlib import Path

import anyio
import pytest

from fetcher.errors import StoreError, VerificationError
from fetcher.plain import PlainFile
from fetcher.progress import Field
from tests.estargz import Entry, build, file
from tests.fetcher.small_disk import small_disk
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered

pytestmark = pytest.mark.anyio


def mixed() -> list[Entry]:
    """Small files before, between and behind large ones of one chunk and of several."""
    return [
        *numbered(5, 2000),
        file("pieces", noise(13 << 19), mode=0o640),
        file("between", b"b"),
        file("one", noise(2 << 20, 1)),
        file("more", noise(5 << 20, 2)),
        file("last", noise(3000, 3)),
    ]


@pytest.mark.parametrize("min_chunk_size", [0, 3 << 20])
async def test_same_files_as_without(tmp_path: Path, min_chunk_size: int) -> None:
    layer = StreamedLayer(
        tmp_path, build(mixed(), chunk_size=2 << 20, min_chunk_size=min_chunk_size, level=1)
    )
    await layer.run(threads=2)
    assert layer.here() == contents(mixed())
    assert os.stat(layer.fs / "pieces").st_mode & 0o777 == 0o640
    assert layer.progress[Field.FILES_DONE] == len(mixed())
    assert layer.progress[Field.POSITION] == layer.tree.members[-1].end
    assert layer.progress[Field.BYTES_DONE] == sum(m.end - m.offset for m in layer.tree.members)
    assert len(layer.blob.requests) == 1


async def test_large_members_are_not_written_by_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = StreamedLayer(tmp_path, build(mixed(), chunk_size=2 << 20, level=1))
    writers: dict[str, set[bool]] = {}
    write = PlainFile.write

    def watched(self: PlainFile, data: bytes | memoryview, offset: int) -> None:
        ours = threading.current_thread() is threading.main_thread()
        writers.setdefault(self.node.path, set()).add(ours)
        write(self, data, offset)

    monkeypatch.setattr(PlainFile, "write", watched)
    await layer.run(threads=2)
    assert writers["between"] == writers["last"] == {True}
    assert writers["one"] == {False}
    assert writers["pieces"] == {True, False}, "its last chunk is small"


async def test_position_never_passes_what_is_not_here(tmp_path: Path) -> None:
    def look(_position: int) -> None:
        passed = [
            node.path
            for node in layer.tree.regular_files()
            if node.chunks[-1].end <= layer.progress[Field.POSITION]
        ]
        assert set(passed) <= set(layer.here())

    layer = StreamedLayer(
        tmp_path, build(mixed(), chunk_size=2 << 20, level=1), on_block=look, blocks=lambda: repeat(300_000)
    )
    await layer.run(threads=2)
    assert layer.here() == contents(mixed())


@pytest.mark.parametrize("where", [100, 5 << 20])
async def test_damage_in_a_thread(tmp_path: Path, where: int) -> None:
    # Stored, not deflated: the damage changes a byte of the content and nothing else.
    layer = StreamedLayer(tmp_path, build(mixed(), chunk_size=2 << 20, level=0))
    layer.blob.corrupt(layer.offset("pieces") + where)
    with pytest.raises(VerificationError, match="'pieces'"):
        await layer.run(threads=2)
    assert "pieces" not in layer.here()
    assert set(layer.here()) >= set(contents(numbered(5, 2000)))
    assert layer.open_files() == 0
    layer.blob.corrupt(layer.offset("pieces") + where)
    await layer.run(threads=2)
    assert layer.here() == contents(mixed())


async def test_member_that_is_no_gzip_is_named(tmp_path: Path) -> None:
    layer = StreamedLayer(tmp_path, build(mixed(), chunk_size=2 << 20, level=1))
    layer.blob.corrupt(layer.offset("one"))
    with pytest.raises(VerificationError, match=f"'one': the layer is damaged at byte {layer.offset('one')}"):
        await layer.run(threads=2)
    assert "one" not in layer.here()


@pytest.mark.root
async def test_full_disk(tmp_path: Path) -> None:
    built = build(mixed(), chunk_size=2 << 20)
    with small_disk(str(tmp_path / "disk"), kilobytes=4000) as disk:
        layer = StreamedLayer(Path(disk), built)
        with pytest.raises(StoreError, match="'pieces'"):
            await layer.run(threads=2)
        assert layer.open_files() == 0


async def test_cancellation_leaves_no_thread_and_no_file_open(tmp_path: Path) -> None:
    layer = StreamedLayer(tmp_path, build(mixed(), chunk_size=1 << 20, level=1))
    before = threading.active_count()
    with anyio.CancelScope() as scope:

        async def pause(_count: int) -> None:
            if layer.progress[Field.POSITION] > layer.offset("pieces"):
                scope.cancel()
            await anyio.lowlevel.checkpoint()

        await layer.run(pause=pause, threads=2)
    assert scope.cancelled_caught
    assert layer.open_files() == 0
    assert threading.active_count() == before
    assert layer.progress[Field.STOP] == 0
