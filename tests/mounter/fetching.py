"""What tests of fetching on demand share: blobs in memory, and a store with a layer in it."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from fetcher.demand import Demand
from fetcher.errors import FetchError
from fetcher.store import FileSource, LayerRecord, LayerStore, Source
from mounter.counters import Counters
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.settings import MounterSettings
from tests.estargz import Layer, build, file

NOISE: Final = random.Random(5).randbytes(500_000)
FILES: Final = {"small": b"small file\n", "empty": b"", "pieces": NOISE, "last": NOISE[:3000]}


class MemoryBlob:
    """A blob whose streams a test can hold, fail and falsify."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []
        self.running = 0
        self.most = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.error: FetchError | None = None
        self.fail_after = 0
        self.failures = -1
        """How many times `error` comes; -1 is for ever."""

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((start, end))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with aclosing(self._blocks(start, end)) as blocks:
                yield blocks
        finally:
            self.running -= 1

    async def _blocks(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        sent = 0
        for position in range(start, end, 10_000):
            await self.gate.wait()
            if self.error is not None and self.failures and sent >= self.fail_after:
                self.failures -= 1
                raise self.error
            block = self.data[position : min(position + 10_000, end)]
            sent += len(block)
            yield block

    async def read(self, start: int, end: int) -> bytes:
        async with self.stream(start, end) as blocks:
            return b"".join([block async for block in blocks])

    async def tail(self, length: int) -> tuple[bytes, int]:
        return self.data[-length:], len(self.data)


class Bench:
    """A store with one layer in it, and an OnDemand that reads from blobs by the path of their source."""

    def __init__(self, root: Path, settings: MounterSettings, layer: Layer) -> None:
        self.store = LayerStore(str(root))
        self.settings = settings
        self.toc_json = layer.toc_json
        self.blobs = {"a": MemoryBlob(layer.blob), "b": MemoryBlob(layer.blob)}
        toc_offset = layer.blob.rindex(b"\x1f\x8b\x08", 0, len(layer.blob) - 51)
        record = LayerRecord(
            digest=layer.digest,
            toc_digest=layer.toc_digest,
            size=len(layer.blob),
            toc_offset=toc_offset,
            sources=[FileSource("a")],
            images=[],
        )
        self.key = self.store.add(record, layer.toc_json)
        self.demand = Demand(self.store.root)

    @property
    def blob(self) -> MemoryBlob:
        return self.blobs["a"]

    async def open_blob(self, source: Source, record: LayerRecord) -> MemoryBlob:
        assert isinstance(source, FileSource)
        return self.blobs[source.path]

    def plain(self, path: str) -> bytes:
        with open(os.path.join(self.store.fs(self.key), path), "rb") as opened:
            return opened.read()

    def run(self, scenario: Callable[[OnDemand, LoadedLayer], Awaitable[None]]) -> None:
        async def running() -> None:
            async with anyio.create_task_group() as tasks:
                ondemand = OnDemand(self.store, self.open_blob, self.settings, tasks, Counters())
                await scenario(ondemand, await ondemand.layers.get(self.key))
                tasks.cancel_scope.cancel()

        anyio.run(running, backend="trio")


def bench(
    root: Path, *, chunk_size: int = 100_000, min_chunk_size: int = 0, settings: MounterSettings | None = None
) -> Bench:
    """FILES in a layer, fetched one by one unless `settings` say otherwise."""
    layer = build(
        [file(name, content) for name, content in FILES.items()],
        chunk_size=chunk_size,
        min_chunk_size=min_chunk_size,
    )
    return Bench(root, settings or MounterSettings(wait_seconds=30, neighbour_bytes=0), layer)


async def until(condition: Callable[[], bool]) -> None:
    """Return when it holds; the test's own limit is the only one."""
    while not condition():  # noqa: ASYNC110 - what it asks has no event
        await anyio.sleep(0.001)
