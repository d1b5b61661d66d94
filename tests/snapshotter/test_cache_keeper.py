"""serve's own keeping, on a cache and streams that only take notes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from snapshotter.cache.keeper import CacheKeeper
from snapshotter.cache.limits import Space
from snapshotter.cache.plan import Limits, Plan
from snapshotter.config import CacheConfig
from tests.snapshotter.cached import cached_layer

pytestmark = pytest.mark.anyio

_PATIENCE_SECONDS = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Node:
    """A disk of 1000 bytes of which 50 are to be free, and what the keeper did."""

    def __init__(self) -> None:
        self.free = 500
        self.reclaimable = 0
        self.excess = 0
        self.notes: list[str] = []
        self.limits: list[Limits] = []
        self.failure: OSError | None = None
        self.kept_free = 0
        self.config = CacheConfig(min_free="40")
        self.keeper = CacheKeeper("/", self.config, cache=self, streams=self, measure=self.measure)

    def measure(self, path: str) -> Space:
        assert path == "/"
        return Space(size=1000, free=self.free)

    async def keep(self, limits: Limits, *, free: int) -> Plan:
        self.notes.append("keep")
        self.limits.append(limits)
        if self.failure is not None:
            raise self.failure
        if free < limits.min_free and self.reclaimable:
            self.free += self.reclaimable
            self.reclaimable = 0
            return Plan((cached_layer("a"),))
        return Plan((), excess=self.excess)

    def keep_free(self, count: int) -> None:
        self.kept_free = count

    def pause(self) -> None:
        self.notes.append("pause")

    def resume(self) -> None:
        self.notes.append("resume")

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(_PATIENCE_SECONDS):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await anyio.sleep(0.01)

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.keeper.run)
            yield
            tasks.cancel_scope.cancel()


async def test_it_looks_at_the_start_and_whenever_it_is_woken() -> None:
    node = Node()
    async with node.keeping():
        await node.until(lambda: node.notes == ["keep"])
        node.keeper.wake()
        await node.until(lambda: node.notes == ["keep", "keep"])


async def test_a_new_configuration_counts_at_once() -> None:
    node = Node()
    async with node.keeping():
        await node.until(lambda: node.notes == ["keep"])
        node.keeper.configure(CacheConfig(max_size="5GB", min_free="80", keep_unused="1h"))
        await node.until(lambda: len(node.limits) == 2)
    assert node.kept_free == 80
    assert node.limits[1] == Limits(max_size=5_000_000_000, min_free=100, keep_unused=3600)


async def test_streaming_waits_while_the_disk_is_nearly_full() -> None:
    node = Node()
    async with node.keeping():
        await node.until(lambda: "keep" in node.notes)
        node.free = 39
        await node.until(lambda: "pause" in node.notes)
        assert "keep" in node.notes[1:], "unused layers are looked for at first"
        node.free = 45
        node.keeper.wake()
        await node.until(lambda: node.notes.count("keep") >= 3)
        assert "resume" not in node.notes, "45 are enough to stream, but not to begin again"
        node.free = 50
        await node.until(lambda: node.notes[-1] == "resume")
    assert node.notes.count("pause") == node.notes.count("resume") == 1


async def test_where_unused_layers_make_room_nothing_waits() -> None:
    node = Node()
    node.free, node.reclaimable = 10, 200
    async with node.keeping():
        await node.until(lambda: node.free == 210)
        node.keeper.wake()
        await node.until(lambda: node.notes.count("keep") == 2)
    assert "pause" not in node.notes


async def test_a_failure_is_not_the_end() -> None:
    node = Node()
    node.failure = OSError(5, "the disk is ill")
    async with node.keeping():
        await node.until(lambda: node.notes == ["keep"])
        node.failure = None
        node.keeper.wake()
        await node.until(lambda: node.notes == ["keep", "keep"])


async def test_a_root_that_is_gone_is_survived(tmp_path: Path) -> None:
    node = Node()
    keeper = CacheKeeper(str(tmp_path / "absent"), node.config, cache=node, streams=node)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.wait_all_tasks_blocked()
        (tmp_path / "absent").mkdir()
        keeper.wake()
        await node.until(lambda: "keep" in node.notes)
        tasks.cancel_scope.cancel()
