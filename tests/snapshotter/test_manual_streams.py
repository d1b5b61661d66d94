"""Streams of several processes on one layer, as serve and a manual mount's keeper have them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fetcher.blob import FileBlob
from fetcher.demand import Slot
from fetcher.opening import open_layer
from fetcher.plain import PlainLayer
from fetcher.store import FileSource, LayerStore
from mounter.meta import MetaForm, metas
from mounter.uses import release_unused, unused
from snapshotter.config import Config
from snapshotter.errors import LayerFailed
from snapshotter.streams import LayerStreams
from tests.estargz import build, file, landmark

pytestmark = [pytest.mark.root, pytest.mark.anyio]

_PATIENCE_SECONDS = 60.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path / "root"))


@pytest.fixture
async def layer(store: LayerStore, tmp_path: Path) -> str:
    """An opened layer; `first` is to be prefetched, `second` is not."""
    made = build([file("first", b"first"), landmark(), file("second", b"second")])
    path = tmp_path / "blob"
    path.write_bytes(made.blob)
    return await open_layer(
        store,
        FileBlob(str(path)),
        digest=made.digest,
        size=len(made.blob),
        promised_toc_digest=made.toc_digest,
        source=FileSource(str(path)),
        image="image",
    )


@asynccontextmanager
async def streams(store: LayerStore, completed: list[str]) -> AsyncIterator[LayerStreams]:
    running = LayerStreams(
        store, Config(), completed=completed.append, meta_form=lambda: MetaForm.EROFS, slot=Slot.MANUAL
    )
    try:
        with anyio.fail_after(_PATIENCE_SECONDS):
            async with anyio.create_task_group() as tasks:
                await tasks.start(running.run)
                yield running
                tasks.cancel_scope.cancel()
    finally:
        release_unused(store.root)
        assert metas(store.root) == [], "nobody uses it any more"


async def test_a_prefetched_layer_has_meta_and_its_range(store: LayerStore, layer: str) -> None:
    async with streams(store, []) as running:
        await running.prefetched(layer)
        assert metas(store.root) == [layer]
        assert Path(store.fs(layer), "first").read_bytes() == b"first"
        with unused(store.root, layer) as free:
            assert not free or store.is_complete(layer)


async def test_what_another_process_streams_is_not_fetched_again(store: LayerStore, layer: str) -> None:
    plain = PlainLayer(store.fs(layer), store.tree(layer))
    completed: list[str] = []
    async with streams(store, completed) as running:
        with store.lock(layer):
            running.want(layer)
            await running.ready(layer)
            plain.write(plain.tree.nodes["first"], b"first")
            await running.prefetched(layer)
            assert not Path(store.fs(layer), "second").exists(), "the other one's to bring"
            plain.write(plain.tree.nodes["second"], b"second")
            plain.finish()
            store.mark_complete(layer)
        while not completed:  # noqa: ASYNC110 - a worker process makes it true
            await anyio.sleep(0.01)
        assert completed == [layer]


async def test_a_source_that_is_gone_gives_way_to_the_next(
    store: LayerStore, layer: str, tmp_path: Path
) -> None:
    store.add_sources(layer, [FileSource(str(tmp_path / "gone"))], ["other"])
    async with streams(store, []) as running:
        await running.prefetched(layer)


async def test_a_failure_before_that_is_named(store: LayerStore, layer: str, tmp_path: Path) -> None:
    (tmp_path / "blob").unlink()
    async with streams(store, []) as running:
        with pytest.raises(LayerFailed, match="blob is gone") as raised:
            await running.prefetched(layer)
        assert raised.value.kind == "StoreError"
