"""The prefetch range of a large layer, brought while its tree is being built."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import anyio
import pytest

from fetcher.progress import Field
from fetcher.settings import RegistrySettings
from snapshotter.worker import _EARLY_TOC, _Worker
from snapshotter.worker_messages import Task
from tests.estargz import Entry, build, dir, file, landmark
from tests.snapshotter.stream_node import StreamNode, until

pytestmark = pytest.mark.root

_FIRST = {f"usr/first{number}": bytes([number]) * 3000 for number in range(3)}
_MANY = 8000


def _entries(count: int = _MANY) -> list[Entry]:
    return [
        dir("usr/", mode=0o700),
        *(file(path, content, mode=0o640) for path, content in _FIRST.items()),
        landmark(),
        file("etc/group", b"group"),
        *(file(f"usr/file{number}", b"rest") for number in range(count)),
        file("etc/passwd", b"passwd"),
        file("last", b"last"),
    ]


class _Node(StreamNode):
    pipe: Connection
    """The other end of a worker's."""


@pytest.fixture
def node(tmp_path: Path) -> _Node:
    return _Node(tmp_path)


def _opened(node: _Node, count: int = _MANY) -> str:
    layer = anyio.run(node.open, build(_entries(count)), "image")
    assert (node.store.toc_size(layer) >= _EARLY_TOC) == (count == _MANY)
    return layer


def _worker(node: _Node, layer: str, *, meta_only: bool = False) -> _Worker:
    node.pipe, theirs = multiprocessing.Pipe()
    worker = _Worker(Task(node.store.root, layer, RegistrySettings(), "warning", meta_only=meta_only), theirs)
    worker._progress = node.store.progress(layer)
    return worker


def _here(node: _Node, layer: str) -> dict[str, bytes]:
    fs = node.store.fs(layer)
    return {
        os.path.relpath(os.path.join(directory, name), fs): Path(directory, name).read_bytes()
        for directory, _, names in os.walk(fs)
        for name in names
    }


def test_it_needs_no_tree(node: _Node) -> None:
    layer = _opened(node)
    worker = _worker(node, layer)
    with worker._stack:
        worker._begin_early()
        assert worker._early is not None
        assert anyio.run(worker._early.ended, lambda: None)
        assert _here(node, layer) == _FIRST | {"etc/passwd": b"passwd", "etc/group": b"group"}
        assert worker._progress[Field.PREFETCH_END] > 0
        fetched = worker._progress[Field.FETCHED_PREFETCH]
        with pytest.raises(BlockingIOError), node.store.lock(layer, wait=False):
            pytest.fail("somebody else may stream it")
        # With the tree, nothing is fetched again.
        worker._prepare()
        anyio.run(worker._bring_first)
        assert worker._progress[Field.FETCHED_PREFETCH] == fetched


def test_the_whole_layer_comes_once(node: _Node) -> None:
    async def scenario() -> None:
        layer = await node.open(build(_entries()), "image")
        async with node.streams() as streams:
            await streams.prefetched(layer)
            assert _here(node, layer).items() >= _FIRST.items()
            await until(lambda: node.completed == [layer])
        progress = node.store.progress(layer)
        assert progress[Field.FILES_DONE] == progress[Field.FILES_TOTAL] == _MANY + 6
        assert len(_here(node, layer)) == _MANY + 6
        fetched = progress[Field.FETCHED_PREFETCH] + progress[Field.FETCHED_BACKGROUND]
        assert fetched <= progress[Field.BYTES_TOTAL]
        assert os.stat(os.path.join(node.store.fs(layer), "usr")).st_mode & 0o777 == 0o700

    anyio.run(scenario)


def test_it_is_not_begun_where_the_tree_comes_as_soon(node: _Node) -> None:
    worker = _worker(node, _opened(node, 100))
    worker._begin_early()
    assert worker._early is None


def test_it_is_not_begun_for_the_tree_alone(node: _Node) -> None:
    worker = _worker(node, _opened(node), meta_only=True)
    worker._begin_early()
    assert worker._early is None


def test_it_is_not_begun_among_files_that_have_to_be_verified(node: _Node) -> None:
    layer = _opened(node)
    node.store.distrust(layer)
    worker = _worker(node, layer)
    worker._begin_early()
    assert worker._early is None


def test_it_is_not_begun_beside_somebody_else(node: _Node) -> None:
    layer = _opened(node)
    worker = _worker(node, layer)
    with node.store.lock(layer):
        worker._begin_early()
    assert worker._early is None


def test_a_failure_of_it_is_met_again_by_whoever_reports_it(node: _Node) -> None:
    layer = _opened(node)
    os.unlink(node.blobs / "image")
    worker = _worker(node, layer)
    with worker._stack:
        worker._begin_early()
        assert worker._early is not None
        assert not anyio.run(worker._early.ended, lambda: None)
    assert _here(node, layer) == {}
