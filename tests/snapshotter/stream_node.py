"""A node of layers and the streams that bring them here, without serve."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import anyio

from fetcher.blob import FileBlob
from fetcher.opening import open_layer
from fetcher.settings import RegistrySettings
from fetcher.store import FileSource, LayerStore, Source
from mounter.meta import MetaForm, metas, release_meta
from snapshotter.config import Config
from snapshotter.streams import LayerStreams
from snapshotter.worker import run_worker
from snapshotter.worker_messages import Report, Task
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


class ForkedWorker:
    """A worker forked off this process, so that what is patched here is so there."""

    def __init__(self, node: StreamNode, layer: str) -> None:
        forked = multiprocessing.get_context("fork")
        self.pipe, self._theirs = forked.Pipe()
        task = Task(node.store.root, layer, RegistrySettings(), "info", MetaForm.EROFS)
        self.process = forked.Process(target=_run_worker, args=(task, self._theirs))
        self.process.start()

    def reports(self) -> list[Report]:
        """What it has said, when it has ended."""
        self.process.join(PATIENCE_SECONDS)
        found = []
        while self.pipe.poll():
            found.append(self.pipe.recv())
        return found


def _run_worker(task: Task, pipe: Connection) -> None:
    """As from the fork server: without this process's garbage, some of which needs threads left there."""
    gc.freeze()
    run_worker(task, pipe)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other processes make true. Raises TimeoutError."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - other processes make it true
            await anyio.sleep(0.01)
