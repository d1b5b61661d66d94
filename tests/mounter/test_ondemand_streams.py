"""What is fetched on demand, and what a stream or a prefetch is waited for instead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fetcher.nodes import Node
from fetcher.progress import Field
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.settings import MounterSettings
from tests.mounter.fetching import FILES, bench


def test_the_stream_that_is_about_to_bring_a_file_is_waited_for(tmp_path: Path) -> None:
    node = bench(tmp_path, settings=MounterSettings(assumed_round_trip=60))

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        small = loaded.tree.nodes["small"]
        loaded.progress[Field.POSITION] = 0
        loaded.progress[Field.STOP] = loaded.tree.end
        loaded.progress[Field.RATE] = max(1, small.chunks[0].end // 30)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, small)
            await anyio.sleep(0.05)
            assert not node.demand.left(), "the stream must not be made to pause"
            loaded.plain.write(small, FILES["small"])
        assert ondemand.counters.streamed == 1

    node.run(scenario)
    assert node.blob.asked == []


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_prefetch_is_waited_for_though_a_request_would_be_faster(tmp_path: Path, prefetch: bool) -> None:
    node = bench(tmp_path, settings=MounterSettings(assumed_bandwidth=1 << 20, assumed_round_trip=0.001))

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        first, end = pieces.chunks[0].offset, pieces.chunks[-1].end
        loaded.progress[Field.STOP] = end
        loaded.progress[Field.PREFETCH_END] = end if prefetch else end - 1
        # Before it there is as much as it has itself, so the stream takes twice as long as a request.
        loaded.progress[Field.POSITION] = max(0, first - (end - first))
        loaded.progress[Field.RATE] = end - first
        ondemand.link.bandwidth = 10 * (end - first)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, pieces)
            await anyio.sleep(0.05)
            loaded.plain.write(pieces, FILES["pieces"])
        assert bool(node.blob.asked) is not prefetch
        assert ondemand.counters.streamed == prefetch

    node.run(scenario)


@asynccontextmanager
async def waiting_for_large(ondemand: OnDemand, loaded: LoadedLayer, node: Node) -> AsyncIterator[list[bool]]:
    """Somebody waits for its prefetch meanwhile; what that gave is in the list."""
    came: list[bool] = []

    async def wait() -> None:
        came.append(await ondemand.streams.prefetched_large(loaded, node))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        yield came


def test_a_large_file_of_a_prefetch_range_may_take_longer_than_an_open(tmp_path: Path) -> None:
    node = bench(tmp_path, settings=MounterSettings(wait_seconds=10, assumed_bandwidth=1))

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        loaded.progress[Field.STOP] = loaded.progress[Field.PREFETCH_END] = pieces.chunks[-1].end
        loaded.progress[Field.RATE] = pieces.chunks[-1].end // 20
        longest = ondemand.settings.wait_seconds
        assert longest < 20
        assert not await ondemand.streams.prefetched(loaded, pieces, longest=longest)
        async with waiting_for_large(ondemand, loaded, pieces) as came:
            await anyio.sleep(0.05)
            loaded.plain.write(pieces, FILES["pieces"])
        assert came == [True]

    node.run(scenario)
    assert node.blob.asked == []


def test_a_large_file_waits_for_its_prefetch_to_begin(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces, progress = loaded.tree.nodes["pieces"], loaded.progress
        progress[Field.PREFETCH_END] = pieces.chunks[-1].end
        async with waiting_for_large(ondemand, loaded, pieces) as came:
            await anyio.sleep(0.05)
            progress[Field.STOP] = pieces.chunks[-1].end  # its rate is not known yet
            await anyio.sleep(0.05)
            assert came == []
            loaded.plain.write(pieces, FILES["pieces"])
        assert came == [True]
        progress[Field.STOP], progress[Field.FETCHED_PREFETCH] = 0, 1
        assert not await ondemand.streams.prefetched_large(loaded, loaded.tree.nodes["last"]), "it is over"

    node.run(scenario)
    assert node.blob.asked == []


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        loaded.progress[Field.STOP] = loaded.progress[Field.PREFETCH_END] = pieces.chunks[-1].end
        loaded.progress[Field.POSITION] = pieces.chunks[1].offset
        loaded.progress[Field.RATE] = 1 << 20
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, pieces)
            await anyio.sleep(0.05)
            loaded.plain.write(pieces, FILES["pieces"])
        assert ondemand.counters.streamed == 1

    node.run(scenario)
    assert node.blob.asked == []


@pytest.mark.parametrize("rate", [0, 1])
def test_a_stream_that_would_take_longer_is_not_waited_for(tmp_path: Path, rate: int) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        loaded.progress[Field.STOP] = loaded.tree.end
        loaded.progress[Field.RATE] = rate
        await ondemand.fetch(loaded, loaded.tree.nodes["last"])

    node.run(scenario)
    assert len(node.blob.asked) == 1


def test_a_stream_that_died_is_waited_for_no_longer_than_it_promised(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        loaded.progress[Field.STOP] = loaded.tree.end
        loaded.progress[Field.RATE] = 1 << 40
        await ondemand.fetch(loaded, loaded.tree.nodes["last"])
        assert ondemand.counters.streamed == 0

    node.run(scenario)
    assert len(node.blob.asked) == 1
