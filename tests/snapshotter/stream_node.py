"""A node of layers and the streams that bring them here, without serve."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from fetcher.blob import FileBlob
from fetcher.opening import open_layer
from fetcher.store import FileSource, LayerStore, Source
from mounter.meta import MetaForm, metas, release_meta
from snapshotter.config import Config
from snapshotter.streams import LayerStreams
from tests.estargz import Layer

PATIENCE_SECONDS = 60.0


class StreamNode:
    """A store with layers from blobs in files, and what was completed."""

    def __init__(self, path: Path) -> None:
        self.blobs = path
        self.store = LayerStore(str(path / "root"))
        self.store.create_directories()
        self.completed: list[str] = []
        self.ended: list[str] = []
        self.config = Config()

    async def open(self, layer: Layer, name: str, *, source: Source | None = None) -> str:
        """Open the layer from a file that is made for it, and is its source if there is no other; its key."""
        path = self.blobs / name
        path.write_bytes(layer.blob)
        return await open_layer(
            self.store,
            FileBlob(str(path)),
            digest=layer.digest,
            size=len(layer.blob),
            promised_toc_digest=layer.toc_digest,
            source=source or FileSource(str(path)),
            image=name,
        )

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[LayerStreams]:
        """Streams that run, without what they leave mounted."""
        streams = LayerStreams(
            self.store,
            self.config,
            completed=self.completed.append,
            ended=self.ended.append,
            meta_form=lambda: MetaForm.EROFS,
        )
        try:
            async with anyio.create_task_group() as tasks:
                await tasks.start(streams.run)
                yield streams
                tasks.cancel_scope.cancel()
        finally:
            for layer in metas(self.store.root):
                release_meta(self.store.root, layer)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes make true. Raises TimeoutError."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes make it true
            await anyio.sleep(0.01)
