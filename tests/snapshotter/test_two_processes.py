"""Large layers, which two processes place where the link is fast enough."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fetcher.progress import Field
from fetcher.store import RegistrySource
from snapshotter.config import Config, StreamConfig
from snapshotter.streams import LayerStreams, State
from tests.estargz import Layer, build, dir, file, landmark
from tests.faulty_registry import FaultyRegistry
from tests.registry_faults import Throttle
from tests.snapshotter.stream_node import StreamNode, until

pytestmark = [pytest.mark.root, pytest.mark.anyio]

_MANY = 4500
"""Files that cost enough for two processes."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def node(tmp_path: Path) -> StreamNode:
    return StreamNode(tmp_path)


def _large(count: int = _MANY) -> Layer:
    """A layer that two processes place."""
    return build([dir("d/"), *(file(f"d/{number:04}", b"%d" % number * 9) for number in range(count))])


def _placers(layer: str) -> list[int]:
    """The processes that place what a layer's worker receives."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if f"worker {layer}, placer" in Path("/proc", name, "cmdline").read_text():
                found.append(int(name))
    return found


def _are_all_here(node: StreamNode, layer: str, count: int = _MANY) -> bool:
    fs = Path(node.store.fs(layer), "d")
    return all((fs / f"{number:04}").read_bytes() == b"%d" % number * 9 for number in range(count))


@asynccontextmanager
async def _placed_by_two(node: StreamNode) -> AsyncIterator[tuple[LayerStreams, str]]:
    """Streams, and a large layer that two processes are about to place; hardly any of it comes."""
    node.config = Config(stream=StreamConfig(bytes_per_second=1))
    layer = await node.open(_large(), "image")
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: len(_placers(layer)) == 1)
        yield streams, layer


async def test_a_large_layer_is_placed_by_two_processes(node: StreamNode) -> None:
    async with _placed_by_two(node) as (streams, layer):
        streams.configure(Config())
        await until(lambda: node.completed == [layer])
        assert _placers(layer) == []
    assert _are_all_here(node, layer)
    progress = node.store.progress(layer)
    assert progress[Field.FILES_DONE] == progress[Field.FILES_TOTAL] == _MANY
    assert progress[Field.BYTES_DONE] == progress[Field.BYTES_TOTAL]
    tree = node.store.tree(layer)
    assert progress[Field.FETCHED_BACKGROUND] == tree.end - tree.members[0].offset, "no byte twice"


async def test_the_placer_ends_with_its_worker(node: StreamNode) -> None:
    async with _placed_by_two(node) as (streams, layer):
        await streams.drop([layer])
        assert _placers(layer) == []
    assert not node.store.is_complete(layer)


async def test_without_its_placer_a_worker_places_all(node: StreamNode) -> None:
    async with _placed_by_two(node) as (streams, layer):
        os.kill(_placers(layer)[0], signal.SIGKILL)
        streams.configure(Config())
        await until(lambda: node.completed == [layer])
    assert _are_all_here(node, layer)
    progress = node.store.progress(layer)
    assert progress[Field.BYTES_DONE] == progress[Field.BYTES_TOTAL]


async def test_wrong_bytes_in_a_large_layer_fail_it(node: StreamNode) -> None:
    good = _large()
    layer = await node.open(good, "image")
    member = node.store.tree(layer).members[-5]
    blob = bytearray(good.blob)
    blob[member.offset + 12] ^= 0xFF
    (node.blobs / "image").write_bytes(blob)
    async with node.streams() as streams:
        streams.want(layer)
        await until(lambda: streams.state(layer)[0] is State.FAILED)
        assert member.pieces[0][0].path in str(streams.state(layer)[1])
    assert not node.store.is_complete(layer)
    assert not Path(node.store.fs(layer), member.pieces[0][0].path).exists()


async def test_a_large_layer_keeps_to_the_rate(node: StreamNode) -> None:
    layer = await node.open(_large(), "image")
    end = node.store.tree(layer).end
    node.config = Config(stream=StreamConfig(bytes_per_second=end // 2, parallel_layers=1))
    async with node.streams() as streams:
        begun = anyio.current_time()
        streams.want(layer)
        await until(lambda: node.completed == [layer])
        # A lower bound is no timing: whatever the machine does, the rate must not be exceeded.
        assert anyio.current_time() - begun > 1.5


@pytest.mark.parametrize("enabled", [True, False], ids=["the worker that knows it", "a later worker"])
async def test_over_a_slow_link_one_process_places_all(node: StreamNode, enabled: bool) -> None:
    noise = random.Random(1)
    rest = [file(f"{number}", noise.randbytes(500)) for number in range(_MANY)]
    built = build([file("first", noise.randbytes(4 << 20)), landmark(), *rest])
    with FaultyRegistry() as registry:
        registry.add_blob(built.blob)
        layer = await node.open(built, "image", source=RegistrySource(f"{registry.host}/team/app"))
        registry.fail("blob", Throttle(1_000_000))
        progress = node.store.progress(layer)
        node.config = Config(stream=StreamConfig(bytes_per_second=1, enabled=enabled))
        async with node.streams() as streams:
            streams.want(layer)
            await streams.prefetched(layer)
            assert 0 < progress[Field.LINK_RATE] < 2_000_000
            streams.configure(Config(stream=StreamConfig(bytes_per_second=1)))
            await until(lambda: progress[Field.FETCHED_BACKGROUND] > 0)
            assert _placers(layer) == []
