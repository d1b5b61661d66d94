"""Streams: layers brought here by real worker processes, from blobs in local files."""

from __future__ import annotations

import errno
import os
import random
import signal
from pathlib import Path

import anyio
import pytest

from fetcher.errors import StoreError
from fetcher.plain import PlainLayer
from fetcher.progress import Field
from mounter.meta import meta_path, metas, release_meta
from mounter.uses import unused
from snapshotter.config import Config, StreamConfig
from snapshotter.errors import Unavailable
from snapshotter.streams import State
from snapshotter.worker_messages import Continue, Failed, Here, Prefetched
from tests.estargz import Entry, build, dir, file, landmark, symlink
from tests.snapshotter.stream_node import ForkedWorker, StreamNode, until

pytestmark = [pytest.mark.root, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def node(tmp_path: Path) -> StreamNode:
    return StreamNode(tmp_path)


def _entries(count: int = 20) -> list[Entry]:
    return [
        dir("usr/", mode=0o755),
        file("usr/first", b"first" * 100, mode=0o4755),
        landmark(),
        *(file(f"usr/file{number}", bytes([number]) * 3000) for number in range(count)),
        symlink("link", "usr/first"),
    ]


async def test_a_wanted_layer_becomes_complete(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        assert streams.state(layer) == (State.STUB, None)
        await streams.ready(layer)
        assert os.path.exists(os.path.join(meta_path(node.store.root, layer), "usr/first"))
        await until(lambda: node.completed == [layer])
        assert streams.state(layer) == (State.COMPLETE, None)
        await streams.until_on_disk()
        assert not streams.works_on(layer)
        assert node.ended == [layer]
    assert Path(node.store.fs(layer), "usr/file7").read_bytes() == bytes([7]) * 3000
    assert os.stat(os.path.join(node.store.fs(layer), "usr/first")).st_mode & 0o7777 == 0o4755
    assert os.readlink(os.path.join(node.store.fs(layer), "link")) == "usr/first"
    progress = node.store.progress(layer)
    assert progress[Field.FILES_DONE] == progress[Field.FILES_TOTAL] == 21
    assert progress[Field.BYTES_DONE] == progress[Field.BYTES_TOTAL]


async def test_what_another_boot_left_is_verified_before_the_layer_can_be_mounted(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    node.store.distrust(layer)
    torn = Path(node.store.fs(layer), "usr/file7")
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"\0" * 3000)
    async with node.streams() as streams, anyio.create_task_group() as tasks:
        with node.store.lock(layer):  # somebody else is at it
            tasks.start_soon(streams.ready, layer)
            await until(lambda: metas(node.store.root) == [layer])
            await anyio.sleep(0.3)
            assert not streams._jobs[layer].ready.is_set()
            assert torn.read_bytes() == b"\0" * 3000
        await streams.ready(layer)
        assert not torn.exists() or torn.read_bytes() == bytes([7]) * 3000
        await until(lambda: node.completed == [layer])
    assert torn.read_bytes() == bytes([7]) * 3000


@pytest.mark.parametrize("apart", [10, 300_000])
async def test_what_containerd_reads_before_a_start_is_here_first(node: StreamNode, apart: int) -> None:
    node.config = Config(stream=StreamConfig(enabled=False))
    between = random.Random(1).randbytes(apart)
    entries = [
        file("etc/group", b"g"),
        file("etc/between", between),
        file("etc/passwd", b"p"),
        file("z", b"z"),
    ]
    layer = await node.open(build([dir("etc/"), file("first", b"1"), landmark(), *entries]), "image")
    async with node.streams() as streams:
        await streams.prefetched(layer)
    here = {
        name
        for name in ("first", "etc/group", "etc/between", "etc/passwd", "z")
        if _is_here(node, layer, name)
    }
    assert here == {"first", "etc/group", "etc/passwd"} | ({"etc/between"} if apart == 10 else set())


def _is_here(node: StreamNode, layer: str, name: str) -> bool:
    return os.path.exists(os.path.join(node.store.fs(layer), name))


async def test_a_layer_that_cannot_be_marked_as_used_is_tried_again(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    uses = Path(node.store.root, "uses")
    uses.write_bytes(b"")  # where the directory is to be
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: streams.state(layer)[0] is State.FAILED)
        assert "uses" in str(streams.state(layer)[1])
        uses.unlink()
        await until(lambda: node.completed == [layer])


async def test_more_layers_than_places_all_become_complete(node: StreamNode) -> None:
    layers = [await node.open(build(_entries(count)), f"image{count}") for count in range(1, 10)]
    async with node.streams() as streams:
        for layer in layers:
            streams.want(layer)
        await until(lambda: sorted(node.completed) == sorted(layers))


async def test_without_streaming_only_the_prefetch_range_comes(node: StreamNode) -> None:
    node.config = Config(stream=StreamConfig(enabled=False))
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        await streams.ready(layer)
        fs = Path(node.store.fs(layer))
        await until(lambda: (fs / "usr/first").exists())
        await until(lambda: streams.state(layer)[0] is State.STUB)
        assert not (fs / "usr/file3").exists()
        streams.configure(Config())
        await until(lambda: node.completed == [layer])
    assert (fs / "usr/file3").exists()


async def test_wrong_bytes_fail_the_layer_and_show_nothing(node: StreamNode) -> None:
    good = build(_entries())
    layer = await node.open(good, "image")
    path = node.blobs / "image"
    member = node.store.tree(layer).members[5]
    blob = bytearray(good.blob)
    blob[member.offset + 12] ^= 0xFF
    path.write_bytes(blob)
    async with node.streams() as streams:
        await streams.ready(layer)
        await until(lambda: streams.state(layer)[0] is State.FAILED)
        assert streams.state(layer)[1]
        wrong = member.pieces[0][0]
        assert not os.path.exists(os.path.join(node.store.fs(layer), wrong.path))
        assert not node.store.is_complete(layer)


async def test_a_layer_that_nobody_wants_any_more_is_left(node: StreamNode) -> None:
    node.config = Config(stream=StreamConfig(bytes_per_second=1))
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        await streams.ready(layer)
        streams.keep_only([])
        assert not streams.works_on(layer)
    assert not node.store.is_complete(layer)


async def test_a_layer_whose_toc_is_damaged_on_disk_is_unavailable(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    Path(node.store.directory(layer), "toc.json").write_bytes(b"{}")
    async with node.streams() as streams:
        with pytest.raises(Unavailable, match="digest"):
            await streams.ready(layer)


async def test_meta_of_a_complete_layer_is_built_without_its_blob(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: node.completed == [layer])
        release_meta(node.store.root, layer)
        (node.blobs / "image").unlink()
        await streams.ready(layer)
        assert metas(node.store.root) == [layer]


async def test_after_a_power_loss_a_file_with_other_content_is_fetched_again(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    fs = Path(node.store.fs(layer))
    (fs / "usr").mkdir()
    (fs / "usr/file3").write_bytes(bytes(3000))
    (fs / "usr/file4").write_bytes(bytes([4]) * 3000)
    kept = (fs / "usr/file4").stat().st_ino
    Path(node.store.directory(layer), "boot").write_text("another")
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: node.completed == [layer])
    assert (fs / "usr/file3").read_bytes() == bytes([3]) * 3000
    assert (fs / "usr/file4").stat().st_ino == kept


async def test_paused_streams_bring_only_what_is_waited_for(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    fs = Path(node.store.fs(layer))
    async with node.streams() as streams:
        streams.pause()
        await streams.ready(layer)
        await until(lambda: (fs / "usr/first").exists())
        await until(lambda: streams.state(layer)[0] is State.STUB)
        assert not (fs / "usr/file3").exists()
        streams.resume()
        await until(lambda: node.completed == [layer])


async def test_a_running_stream_is_paused_and_goes_on_where_it_was(node: StreamNode) -> None:
    node.config = Config(stream=StreamConfig(bytes_per_second=1, parallel_layers=1))
    layer = await node.open(build(_entries(250)), "image")
    async with node.streams() as streams:
        await streams.ready(layer)
        await until(lambda: node.store.progress(layer)[Field.STOP] != 0)
        streams.pause()
        await until(lambda: streams.state(layer)[0] is State.STUB)
        assert streams.works_on(layer)
        assert not node.store.is_complete(layer)
        streams.configure(Config())
        await anyio.wait_all_tasks_blocked()
        assert streams.state(layer)[0] is State.STUB, "another configuration does not make room"
        streams.resume()
        await until(lambda: node.completed == [layer])


async def test_resuming_tries_again_at_once_what_failed(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    blob = node.blobs / "image"
    blob.rename(node.blobs / "elsewhere")
    async with node.streams() as streams:
        await streams.ready(layer)
        await until(lambda: streams.state(layer)[0] is State.FAILED)
        (node.blobs / "elsewhere").rename(blob)
        streams.resume()
        await until(lambda: node.completed == [layer])


async def test_a_dropped_layer_is_worked_on_by_nobody(node: StreamNode) -> None:
    node.config = Config(stream=StreamConfig(bytes_per_second=1, parallel_layers=1))
    layers = [await node.open(build(_entries(count)), f"image{count}") for count in (200, 250)]
    async with node.streams() as streams:
        for layer in layers:
            await streams.ready(layer)
        await streams.drop([layers[0], "a" * 20])
        assert not streams.works_on(layers[0])
        assert streams.works_on(layers[1])
        with unused(node.store.root, layers[0]) as free:
            assert free
        with unused(node.store.root, layers[1]) as free:
            assert not free
        streams.keep_only([])
        await streams.drop([layers[1]])
        with unused(node.store.root, layers[1]) as free:
            assert free


async def test_a_stream_waits_by_itself_while_too_little_is_free(node: StreamNode) -> None:
    node.config = Config(stream=StreamConfig(parallel_layers=2))
    noise = random.Random(1)
    large = await node.open(build([file(f"file{n}", noise.randbytes(1 << 20)) for n in range(12)]), "large")
    small = await node.open(build(_entries()), "small")
    progress = node.store.progress(large)
    async with node.streams() as streams:
        streams.keep_free(1 << 62)
        streams.want(large)
        await until(lambda: progress[Field.FETCHED_BACKGROUND] >= 2 << 20)
        streams.want(small)
        await until(lambda: node.completed == [small])
        assert progress[Field.FETCHED_BACKGROUND] <= 4 << 20
        streams.keep_free(0)
        await until(lambda: sorted(node.completed) == sorted([small, large]))


async def test_a_layer_is_complete_before_it_is_on_disk(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: node.completed == [layer])
        await streams.until_on_disk()
        assert node.store.is_on_disk(layer)
        assert not streams.works_on(layer)
        # As if serve had been killed in between.
        os.unlink(Path(node.store.directory(layer), "complete"))
        node.store.mark_here(layer)
        assert node.store.is_complete(layer)
        assert not node.store.is_on_disk(layer)
        streams.want(layer)
        await streams.until_on_disk()
        assert node.store.is_on_disk(layer)


async def test_what_was_not_on_disk_when_the_power_failed_is_not_complete(node: StreamNode) -> None:
    layer = await node.open(build(_entries()), "image")
    async with node.streams() as streams:
        streams.want(layer)
        await streams.until_on_disk()
    directory = Path(node.store.directory(layer))
    (directory / "complete").unlink()
    for mark in ("here", "boot"):
        (directory / mark).write_text("another boot")
    (directory / "fs/usr/file3").write_bytes(bytes(3000))
    assert not node.store.is_complete(layer)
    async with node.streams() as streams:
        streams.want(layer)
        await streams.until_on_disk()
    assert (directory / "fs/usr/file3").read_bytes() == bytes([3]) * 3000
    assert node.store.is_on_disk(layer)
    assert not (directory / "here").exists()


def test_a_worker_that_crashes_says_where(node: StreamNode, capfd: pytest.CaptureFixture[str]) -> None:
    layer = anyio.run(node.open, build(_entries()), "image")
    worker = ForkedWorker(node, layer)
    while not isinstance(worker.pipe.recv(), Prefetched):
        pass
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGSEGV)
    worker.reports()
    release_meta(node.store.root, layer)
    assert worker.process.exitcode == -signal.SIGSEGV
    said = capfd.readouterr().err
    assert "Fatal Python error: Segmentation fault" in said
    assert "in run_worker" in said


def test_what_the_disk_refused_is_verified_before_it_is_believed_again(
    node: StreamNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = anyio.run(node.open, build(_entries()), "image")

    def refuse(_plain: PlainLayer) -> None:
        assert node.store.is_complete(layer), "containers have it meanwhile"
        raise StoreError("cannot sync", errno=errno.EIO)

    monkeypatch.setattr(PlainLayer, "sync", refuse)
    worker = ForkedWorker(node, layer)
    worker.pipe.send(Continue())
    assert worker.reports()[-2:] == [Here(), Failed("StoreError", "cannot sync", True)]
    release_meta(node.store.root, layer)
    assert not node.store.is_complete(layer)
    assert not node.store.same_boot(layer)
