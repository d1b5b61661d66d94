"""META of a large layer, which a process makes that has a tree of its own, beside the worker's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest

from fetcher.errors import InvalidToc
from fetcher.store import StoredToc
from fetcher.tree import LayerTree
from mounter.meta import meta_path, metas, release_meta
from snapshotter.worker_messages import Complete, Continue, Failed, Here, Prefetched, Ready, Sound
from tests.estargz import Entry, build, dir, file, landmark
from tests.snapshotter.stream_node import PATIENCE_SECONDS, ForkedWorker, StreamNode

pytestmark = pytest.mark.root

ENTRIES: list[Entry] = [
    dir("usr/"),
    file("usr/first", b"1"),
    landmark(),
    *(file(f"usr/file{number}", bytes([number]) * 3000) for number in range(20)),
]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamNode:
    monkeypatch.setattr("snapshotter.worker._LARGE_TOC", 1)
    return StreamNode(tmp_path)


def test_meta_of_a_large_layer_is_made_beside_its_tree(
    node: StreamNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    test, tree = os.getpid(), StoredToc.tree

    def late(toc: StoredToc) -> LayerTree:
        assert os.getppid() == test, "the process that makes META needs no tree with chunks"
        until_meta_stands(node, layer)
        return tree(toc)

    monkeypatch.setattr(StoredToc, "tree", late)
    layer = anyio.run(node.open, build(ENTRIES), "image")
    worker = ForkedWorker(node, layer)
    worker.pipe.send(Continue())
    reports = worker.reports()
    assert [type(report) for report in reports] == [Sound, Ready, Prefetched, Here, Complete]
    shown = Path(meta_path(node.store.root, layer))
    assert sorted(path.name for path in shown.rglob("*")) == sorted(
        path.name for path in Path(node.store.fs(layer)).rglob("*")
    )
    assert (shown / "usr/file7").stat().st_size == 3000
    release_meta(node.store.root, layer)


def until_meta_stands(node: StreamNode, layer: str) -> None:
    """Blocking; fails the test if it never does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while metas(node.store.root) != [layer]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_large_layer_with_chunks_that_make_no_sense_is_rejected(
    node: StreamNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_toc: StoredToc) -> LayerTree:
        raise InvalidToc("a chunk of 'a' lies outside the layer")

    monkeypatch.setattr(StoredToc, "tree", refuse)
    layer = anyio.run(node.open, build(ENTRIES), "image")
    worker = ForkedWorker(node, layer)
    assert worker.reports() == [Failed("InvalidToc", "a chunk of 'a' lies outside the layer", False)]
    release_meta(node.store.root, layer)
