"""Fetching on demand, over blobs in memory and without FUSE."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from fetcher.errors import StoreError, VerificationError
from fetcher.progress import Field
from mounter.counters import Counters, Histogram
from mounter.errors import TooSlow
from mounter.link import LinkEstimate, RequestTimer
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.partial import members, runs
from mounter.settings import MounterSettings
from tests.estargz import build, file
from tests.mounter.fetching import FILES, NOISE, Bench, bench, until


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_whole_and_verified(tmp_path: Path, name: str) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        await ondemand.fetch(loaded, loaded.tree.nodes[name])
        await ondemand.fetch(loaded, loaded.tree.nodes[name])
        assert ondemand.counters.fetches == 1
        assert ondemand.counters.fetched_bytes == sum(end - start for start, end in node.blob.asked)
        assert loaded.progress[Field.FETCHED_ON_DEMAND] == ondemand.counters.fetched_bytes

    node.run(scenario)
    assert node.plain(name) == FILES[name]
    assert len(node.blob.asked) == (1 if FILES[name] else 0), "neighbouring chunks in one request"


@pytest.mark.parametrize("min_chunk_size", [0, 1 << 30])
def test_members_that_are_shared_or_streamed(tmp_path: Path, min_chunk_size: int) -> None:
    node = bench(tmp_path, min_chunk_size=min_chunk_size)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        async with anyio.create_task_group() as tasks:
            for name in FILES:
                tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes[name])

    node.run(scenario)
    assert {name: node.plain(name) for name in FILES} == FILES


def test_however_many_ask_a_file_is_fetched_once(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        node.blob.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes["pieces"])
            await anyio.wait_all_tasks_blocked()
            assert node.demand.left(), "background streams are asked to pause"
            node.blob.gate.set()
        await until(lambda: not node.demand.left())
        assert ondemand.latency.snapshot().count == 50

    node.run(scenario)
    assert len(node.blob.asked) == 1
    assert node.plain("pieces") == NOISE


def test_requests_are_bounded(tmp_path: Path) -> None:
    layer = build([file(f"f{number}", bytes([number]) * 100) for number in range(30)])
    node = Bench(tmp_path, MounterSettings(concurrent_requests=3, neighbour_bytes=0), layer)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        async with anyio.create_task_group() as tasks:
            for child in loaded.tree.regular_files():
                tasks.start_soon(ondemand.fetch, loaded, child)

    node.run(scenario)
    assert len(node.blob.asked) == 30
    assert node.blob.most == 3


def test_a_waiter_that_gives_up_does_not_stop_the_fetch(tmp_path: Path) -> None:
    node = bench(tmp_path, settings=MounterSettings(wait_seconds=0.05))

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        node.blob.gate = anyio.Event()
        with pytest.raises(TooSlow, match="small"):
            await ondemand.fetch(loaded, loaded.tree.nodes["small"])
        assert ondemand.counters.fetch_failures == 1
        node.blob.gate.set()
        ondemand.configure(MounterSettings(wait_seconds=30))
        await ondemand.fetch(loaded, loaded.tree.nodes["small"])

    node.run(scenario)
    assert len(node.blob.asked) == 1


def test_bring_fetches_what_is_wanted_and_a_window_ahead(tmp_path: Path) -> None:
    node = bench(tmp_path, chunk_size=20_000)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        with ondemand.using(loaded, pieces) as partial:
            assert await ondemand.bring(loaded, partial, range(7, 8))
            assert node.blob.asked == [(pieces.chunks[7].offset, pieces.chunks[7].end)]
            assert partial.has([7])
            assert os.pread(partial.fd, 20_000, 140_000) == NOISE[140_000:160_000]
            assert await ondemand.bring(loaded, partial, range(9, 10), ahead=50_000)
            assert node.blob.asked[1] == (pieces.chunks[9].offset, pieces.chunks[12].end)
            assert await ondemand.bring(loaded, partial, range(25))
            assert not partial.arrivals
        assert sum(end - start for start, end in node.blob.asked) == sum(
            chunk.end - chunk.offset for chunk in pieces.chunks
        )

    node.run(scenario)
    assert node.plain("pieces") == NOISE


def test_bring_says_when_the_file_has_come_another_way(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        node.blob.gate = anyio.Event()
        loaded.plain.write(pieces, NOISE)
        with ondemand.using(loaded, pieces) as partial:
            assert not await ondemand.bring(loaded, partial, range(1))

    node.run(scenario)
    assert node.blob.asked == []


def test_bring_gives_up_when_nothing_comes(tmp_path: Path) -> None:
    node = bench(tmp_path, settings=MounterSettings(wait_seconds=0.05))

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        node.blob.gate = anyio.Event()
        with ondemand.using(loaded, pieces) as partial, pytest.raises(TooSlow):
            await ondemand.bring(loaded, partial, range(1))

    node.run(scenario)


def test_large_is_what_would_take_too_long(tmp_path: Path) -> None:
    settings = MounterSettings(assumed_bandwidth=100_000, large_file_seconds=2)
    node = bench(tmp_path, settings=settings)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        assert ondemand.is_large(loaded, pieces)
        assert not ondemand.is_large(loaded, loaded.tree.nodes["last"])
        loaded.progress[Field.STOP] = loaded.tree.end
        loaded.progress[Field.RATE] = 1_000_000
        assert not ondemand.is_large(loaded, pieces), "the running stream shows what the link can do"
        loaded.progress[Field.STOP] = 0
        with ondemand.using(loaded, pieces) as partial:
            await ondemand.bring(loaded, partial, range(4))
            ondemand.link.bandwidth = 100_000
            assert not ondemand.is_large(loaded, pieces), "what is here already does not count"

    node.run(scenario)


def test_trees_and_halves_of_files_are_given_up_when_nobody_uses_them(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        with ondemand.using(loaded, pieces) as partial:
            await ondemand.bring(loaded, partial, range(1))
            await ondemand.layers.sweep(0)
            assert ondemand.layers.partial_files() == 1
        node.store.mark_complete(node.key)
        await anyio.sleep(0.01)
        await ondemand.layers.sweep(0)
        assert (ondemand.layers.partial_files(), len(ondemand.layers)) == (0, 0)
        again = await ondemand.layers.get(node.key)
        assert again is not loaded
        await ondemand.fetch(again, again.tree.nodes["pieces"])

    node.run(scenario)
    assert node.plain("pieces") == NOISE


def test_a_layer_that_was_removed_and_opened_again_is_loaded_again(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        await ondemand.layers.sweep(3600)
        assert await ondemand.layers.get(node.key) is loaded
        record = node.store.record(node.key)
        os.rename(node.store.directory(node.key), tmp_path / "removed")
        node.store.add(record, node.toc_json)
        await ondemand.layers.sweep(3600)
        assert await ondemand.layers.get(node.key) is not loaded

    node.run(scenario)


def test_a_layer_that_is_not_here_cannot_be_loaded(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        with pytest.raises(StoreError):
            await ondemand.layers.get("a" * 20)

    node.run(scenario)


def test_a_damaged_layer_is_not_believed(tmp_path: Path) -> None:
    node = bench(tmp_path)
    path = os.path.join(node.store.directory(node.key), "toc.json")
    with open(path, "ab") as toc:
        toc.write(b" ")

    async def scenario() -> None:
        async with anyio.create_task_group() as tasks:
            ondemand = OnDemand(node.store, node.open_blob, node.settings, tasks, Counters())
            with pytest.raises(VerificationError):
                await ondemand.layers.get(node.key)

    anyio.run(scenario, backend="trio")


def test_chunks_become_runs_of_members(tmp_path: Path) -> None:
    node = bench(tmp_path)
    pieces = node.store.tree(node.key).nodes["pieces"]
    found = runs(members(pieces, [4, 0, 1]))
    assert [[part.indexes for part in run] for run in found] == [[(0,), (1,)], [(4,)]]
    assert found[0][0].end == found[0][1].offset == pieces.chunks[1].offset


def test_the_estimate_follows_the_link() -> None:
    link = LinkEstimate(bandwidth=1.0, round_trip=9.0)
    timer = RequestTimer(link, 100.0)
    timer.block(500_000, 100.02)
    assert link.round_trip == pytest.approx(0.02)
    assert link.bandwidth == 1.0, "what came with the first byte says nothing"
    timer.block(1_000_000, 100.12)
    timer.block(2_000_000, 100.121)
    assert link.bandwidth == 1.0, "nor does a burst"
    timer.block(1_000_000, 100.42)
    assert link.bandwidth == pytest.approx(10_000_000)
    timer.block(1_000_000, 100.62)
    timer.end()
    assert 5_000_000 < link.bandwidth < 10_000_000


def test_percentiles_are_close_and_never_below() -> None:
    histogram = Histogram()
    assert histogram.snapshot().p99 == 0
    for number in range(1, 1001):
        histogram.add(number / 1000)
    latency = histogram.snapshot()
    assert (latency.count, latency.max) == (1000, 1.0)
    assert latency.sum == pytest.approx(500.5)
    assert 0.5 <= latency.p50 <= 0.71
    assert 0.99 <= latency.p99 <= 1.0
