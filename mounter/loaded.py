"""Layers whose trees are in memory: loaded at the first need, given up when nobody needs them.

A tree of 20,000 files takes 0.15 s to load and 30 MB: hence both. Belongs to the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
from anyio import to_thread

from fetcher.logs import get_logger
from fetcher.memory import return_unreachable_memory
from fetcher.nodes import Node
from fetcher.plain import PlainLayer
from fetcher.progress import Progress
from fetcher.store import LayerRecord, LayerStore
from fetcher.tree import LayerTree
from mounter.neighbours import Coming, neighbourhood
from mounter.partial import PartialFile
from mounter.readahead import ReadAhead

log = get_logger("layergate.mounter")

_INCOMPLETE_PATIENCE: Final = 10
"""A layer that is still streaming is likely to be asked for again: it stays so many times longer."""


class LoadedLayer:
    """A layer that files are being fetched for. `users` counts what must not lose it."""

    __slots__ = (
        "_inodes",
        "_places",
        "coming",
        "inode",
        "key",
        "last_used",
        "partials",
        "plain",
        "preferred",
        "progress",
        "read_ahead",
        "record",
        "record_doubtful",
        "tree",
        "users",
    )

    def __init__(
        self, key: str, record: LayerRecord, plain: PlainLayer, progress: Progress, inode: int
    ) -> None:
        self.key = key
        self.inode = inode
        """Of the layer's directory: another one is another layer's life."""
        self.record = record
        self.record_doubtful = False
        """Whether its sources failed, so that the one on disk may know better ones."""
        self.preferred = 0
        """The index of the source that served last."""
        self.tree: LayerTree = plain.tree
        self.plain = plain
        self.progress = progress
        self.partials: dict[str, PartialFile] = {}
        self.coming: list[Coming] = []
        """Neighbours of missed files that are on their way."""
        self.read_ahead = ReadAhead()
        self.users = 0
        self.last_used = 0.0
        self._inodes: list[Node] = []
        self._places: dict[str, int] = {}

    def partial(self, node: Node) -> PartialFile:
        """The file as far as it is here."""
        found = self.partials.get(node.path)
        if found is None:
            found = self.partials[node.path] = PartialFile(self.plain, node, anyio.current_time())
        return found

    def inodes(self) -> list[Node]:
        """The tree's inodes by place, always in the same order."""
        if not self._inodes:
            self._inodes = list(self.tree.inodes())
        return self._inodes

    def place(self, node: Node) -> int:
        """Where `inodes` has the node."""
        if not self._places:
            self._places = {node.path: place for place, node in enumerate(self.inodes())}
        return self._places[node.path]

    def expect_neighbours(self, start: int, size: int) -> Coming | None:
        """Have whoever misses one of these files wait for it from now on, until `settle_neighbours`.

        They are what is missing within `size` bytes behind byte `start` of the blob, up to what another
        request brings; None if there is nothing.
        """
        for other in self.coming:
            if other.start <= start < other.end:
                return None
            if start < other.start:
                size = min(size, other.start - start)
        coming = neighbourhood(self.tree.members, start, size, self._is_missing)
        if coming is not None:
            self.coming.append(coming)
        return coming

    def settle_neighbours(self, coming: Coming) -> None:
        """They are here, or will not come."""
        self.coming.remove(coming)
        coming.advance(coming.end)

    def _is_missing(self, node: Node) -> bool:
        """Whether nobody has asked for a file that is not here."""
        return node.path not in self.partials and not self.plain.has(node)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep the layer loaded for the time of the block."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.last_used = anyio.current_time()


class LoadedLayers:
    """All layers that are in memory."""

    def __init__(self, store: LayerStore) -> None:
        self.store = store
        self._layers: dict[str, LoadedLayer] = {}
        self._loading: dict[str, anyio.Lock] = {}

    def __len__(self) -> int:
        return len(self._layers)

    def partial_files(self) -> int:
        """How many files are here in part."""
        return sum(len(layer.partials) for layer in self._layers.values())

    async def get(self, key: str) -> LoadedLayer:
        """The layer, loaded if it is not. Raises StoreError if it is absent, FormatError if it is damaged."""
        loaded = self._layers.get(key)
        if loaded is None:
            loaded = await self._load_once(key)
        loaded.last_used = anyio.current_time()
        return loaded

    async def refresh_record(self, loaded: LoadedLayer) -> None:
        """Read the layer's record again. Raises StoreError, FormatError."""
        loaded.record = await to_thread.run_sync(self.store.record, loaded.key)
        loaded.record_doubtful = False

    async def sweep(self, idle_seconds: float) -> None:
        """Give up half-fetched files and trees that nobody has used for some time."""
        now = anyio.current_time()
        closing: list[PartialFile] = []
        for loaded in list(self._layers.values()):
            for path, partial in list(loaded.partials.items()):
                if not partial.users and (partial.committed or now - partial.last_used > idle_seconds):
                    del loaded.partials[path]
                    closing.append(partial)
        for partial in closing:
            await to_thread.run_sync(partial.close)
        dropped = 0
        for key, loaded in list(self._layers.items()):
            idle = now - loaded.last_used
            if loaded.users or loaded.partials:
                continue
            if (
                idle > idle_seconds * _INCOMPLETE_PATIENCE
                or (idle > idle_seconds and self.store.is_complete(key))
                or self._inode(key) != loaded.inode
            ):
                del self._layers[key]
                dropped += 1
            del loaded
        if dropped:
            log.info("layers_unloaded", count=dropped)
            await to_thread.run_sync(return_unreachable_memory)

    async def _load_once(self, key: str) -> LoadedLayer:
        lock = self._loading.setdefault(key, anyio.Lock())
        try:
            async with lock:
                loaded = self._layers.get(key)
                if loaded is None:
                    loaded = self._layers[key] = await to_thread.run_sync(self._load, key)
                    log.info("layer_loaded", layer=key, paths=len(loaded.tree.nodes))
                return loaded
        finally:
            if not lock.statistics().tasks_waiting:
                self._loading.pop(key, None)

    def _load(self, key: str) -> LoadedLayer:
        inode = self._inode(key)
        record = self.store.record(key)
        plain = PlainLayer(self.store.fs(key), self.store.tree(key))
        return LoadedLayer(key, record, plain, self.store.progress(key), inode)

    def _inode(self, key: str) -> int:
        """The inode number of the layer's directory; 0 if the layer is not here any more."""
        try:
            return os.stat(self.store.directory(key)).st_ino
        except FileNotFoundError:
            return 0
