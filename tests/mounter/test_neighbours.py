"""Files that lie behind a missed one: they come with it, and nobody asks for them again."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Final

import anyio
import pytest

from fetcher.errors import RegistryUnreachable
from mounter.loaded import LoadedLayer
from mounter.neighbours import Coming, neighbourhood
from mounter.ondemand import OnDemand
from mounter.readahead import LEAST
from mounter.settings import MounterSettings
from tests.estargz import build, file
from tests.fetcher.streaming import open_files
from tests.mounter.fetching import Bench, until

SIZE: Final = 10_000
COUNT: Final = 40
_random = random.Random(6)
CONTENT: Final = {f"{number:02}": _random.randbytes(SIZE) for number in range(COUNT)}


def layer(
    root: Path,
    *,
    most: int = 1 << 20,
    min_chunk_size: int = 0,
    chunk_size: int = 100_000,
    bandwidth: int = 1000,
) -> Bench:
    """COUNT incompressible files, side by side; a neighbourhood has LEAST bytes, or `most` if less."""
    settings = MounterSettings(
        wait_seconds=30, neighbour_bytes=most, assumed_bandwidth=bandwidth, assumed_round_trip=0.001
    )
    files = [file(name, data) for name, data in CONTENT.items()]
    return Bench(root, settings, build(files, chunk_size=chunk_size, min_chunk_size=min_chunk_size))


def neighbours(loaded: LoadedLayer, start: int, size: int) -> Coming | None:
    return neighbourhood(loaded.tree.members, start, size, lambda node: not loaded.plain.has(node))


def here(bench: Bench) -> list[str]:
    return sorted(os.listdir(bench.store.fs(bench.key)))


@pytest.mark.parametrize("chunk_size", [100_000, 3_000], ids=["one chunk a file", "four"])
def test_what_lies_behind_a_missed_file_comes_with_it(tmp_path: Path, chunk_size: int) -> None:
    bench = layer(tmp_path, chunk_size=chunk_size)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        await ondemand.fetch(loaded, loaded.tree.nodes["10"])
        await until(lambda: not ondemand.in_flight)
        count = LEAST // SIZE
        assert here(bench) == [f"{number:02}" for number in range(10, 11 + count)]
        assert ondemand.counters.neighbours == count
        assert ondemand.counters.fetches == 1
        for number in range(11, 11 + count):
            await ondemand.fetch(loaded, loaded.tree.nodes[f"{number:02}"])
        assert ondemand.counters.fetches == 1

    bench.run(scenario)
    assert len(bench.blob.asked) == 1
    assert all(bench.plain(name) == CONTENT[name] for name in here(bench))


def test_who_reads_in_order_gets_more_with_each_request(tmp_path: Path) -> None:
    bench = layer(tmp_path, bandwidth=1_000_000)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        for name in CONTENT:
            await ondemand.fetch(loaded, loaded.tree.nodes[name])

    bench.run(scenario)
    assert {name: bench.plain(name) for name in here(bench)} == CONTENT
    first, second, third = [end - start for start, end in bench.blob.asked]
    assert 7 * SIZE < first < 8 * SIZE
    assert 1.8 * first < second < 2.1 * first
    assert third > second


def test_neighbours_stand_back_for_whoever_is_being_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mounter.ondemand._ANSWER_SECONDS", 60.0)
    bench = layer(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        with ondemand.answering():
            await ondemand.fetch(loaded, loaded.tree.nodes["10"])
            with ondemand.answering():
                await anyio.sleep(0.05)
            await anyio.sleep(0.05)
            assert here(bench) == ["10"]
        await until(lambda: not ondemand.in_flight)
        assert len(here(bench)) > 1

    bench.run(scenario)


def test_neighbours_do_not_stand_back_for_ever(tmp_path: Path) -> None:
    bench = layer(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        with ondemand.answering():
            await ondemand.fetch(loaded, loaded.tree.nodes["10"])
            await until(lambda: len(here(bench)) > 1)

    bench.run(scenario)


@pytest.mark.parametrize("chunk_size", [100_000, 3_000], ids=["one chunk a file", "four"])
def test_a_file_that_is_coming_along_is_not_asked_for(tmp_path: Path, chunk_size: int) -> None:
    bench = layer(tmp_path, chunk_size=chunk_size)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        bench.blob.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes["00"])
            await until(lambda: bool(loaded.coming))
            for name in ("01", "03", "02"):
                tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes[name])
            await anyio.sleep(0.01)
            bench.blob.gate.set()
        assert ondemand.counters.streamed == 3
        assert not loaded.coming

    bench.run(scenario)
    assert len(bench.blob.asked) == 1


def test_none_are_asked_for_where_they_are_not_wanted(tmp_path: Path) -> None:
    bench = layer(tmp_path, most=0)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        await ondemand.fetch(loaded, loaded.tree.nodes["10"])

    bench.run(scenario)
    assert here(bench) == ["10"]


def test_a_failure_behind_the_file_is_not_the_files(tmp_path: Path) -> None:
    bench = layer(tmp_path)
    bench.blob.error = RegistryUnreachable("the registry cannot be reached", host="registry.test")
    bench.blob.fail_after = 3 * SIZE
    bench.blob.failures = 1

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        await ondemand.fetch(loaded, loaded.tree.nodes["00"])
        await until(lambda: not ondemand.in_flight)
        assert not loaded.coming
        assert ondemand.counters.fetch_failures == 0
        await ondemand.fetch(loaded, loaded.tree.nodes["05"])

    bench.run(scenario)
    assert bench.plain("05") == CONTENT["05"]
    assert len(bench.blob.asked) == 2


def test_whoever_waits_for_a_neighbour_that_does_not_come_asks_for_it(tmp_path: Path) -> None:
    bench = layer(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        bench.blob.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes["00"])
            await until(lambda: bool(loaded.coming))
            tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes["05"])
            await anyio.sleep(0.01)
            bench.blob.error = RegistryUnreachable("the registry cannot be reached", host="registry.test")
            bench.blob.fail_after = 3 * SIZE
            bench.blob.failures = 1
            bench.blob.gate.set()

    bench.run(scenario)
    assert bench.plain("00") == CONTENT["00"]
    assert bench.plain("05") == CONTENT["05"]


@pytest.mark.parametrize("chunk_size", [100_000, 3_000], ids=["one chunk a file", "four"])
def test_a_wrong_byte_in_a_neighbour_is_shown_to_nobody(tmp_path: Path, chunk_size: int) -> None:
    bench = layer(tmp_path, chunk_size=chunk_size)
    good = bench.blob.data

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        bad = bytearray(good)
        chunk = loaded.tree.nodes["02"].chunks[-1]
        bad[(chunk.offset + chunk.end) // 2] ^= 1
        bench.blob.data = bytes(bad)
        await ondemand.fetch(loaded, loaded.tree.nodes["00"])
        await until(lambda: not ondemand.in_flight)
        assert "02" not in here(bench)
        assert open_files(bench.store.fs(bench.key)) == 1, "that of 00, until the next sweep"
        bench.blob.data = good
        for name in CONTENT:
            await ondemand.fetch(loaded, loaded.tree.nodes[name])

    bench.run(scenario)
    assert {name: bench.plain(name) for name in here(bench)} == CONTENT


@pytest.mark.parametrize(("chunk_size", "min_chunk_size"), [(100_000, 0), (100_000, 1 << 15), (3_000, 0)])
@pytest.mark.parametrize("start", [0, 7, COUNT - 1])
def test_a_neighbourhood_is_what_is_missing_and_near(
    tmp_path: Path, start: int, chunk_size: int, min_chunk_size: int
) -> None:
    bench = layer(tmp_path, chunk_size=chunk_size, min_chunk_size=min_chunk_size)

    async def scenario(_ondemand: OnDemand, loaded: LoadedLayer) -> None:
        nodes = loaded.tree.nodes
        end = nodes[f"{start:02}"].chunks[-1].end
        assert neighbours(loaded, loaded.tree.end, 1 << 20) is None
        for size in (1, 20_000, 50_000, 1 << 20):
            found = neighbours(loaded, end, size)
            pieces = [piece for member in found.members for piece in member.pieces] if found else []
            names = list(dict.fromkeys(node.path for node, _ in pieces))
            expected = [name for name in CONTENT if end <= nodes[name].chunks[0].offset
                        and nodes[name].chunks[-1].end <= end + size]  # fmt: skip
            assert names == expected
        for name in CONTENT:
            if name != "39":
                bench_write(loaded, name)
        found = neighbours(loaded, nodes["38"].chunks[0].offset, 1 << 20)
        assert found is not None
        assert [node.path for node, _ in found.members[-1].pieces][-1] == "39"
        bench_write(loaded, "39")
        assert neighbours(loaded, 0, 1 << 20) is None

    def bench_write(loaded: LoadedLayer, name: str) -> None:
        loaded.plain.write(loaded.tree.nodes[name], CONTENT[name])

    bench.run(scenario)


def test_of_a_large_file_all_comes_along_or_nothing(tmp_path: Path) -> None:
    contents = {"a": b"a", "large": CONTENT["00"] * 20, "z": b"z"}
    files = [file(name, data) for name, data in contents.items()]
    bench = Bench(tmp_path, MounterSettings(), build(files, chunk_size=SIZE))

    async def scenario(_ondemand: OnDemand, loaded: LoadedLayer) -> None:
        nodes = loaded.tree.nodes
        start, large = nodes["a"].chunks[0].offset, nodes["large"].chunks[-1].end
        for size, last in ((large - start - 1, "a"), (large - start, "large"), (1 << 20, "z")):
            found = neighbours(loaded, start, size)
            assert found is not None
            assert found.end == nodes[last].chunks[-1].end

    bench.run(scenario)


def test_what_is_here_already_ends_a_neighbourhood(tmp_path: Path) -> None:
    bench = layer(tmp_path)

    async def scenario(_ondemand: OnDemand, loaded: LoadedLayer) -> None:
        nodes = loaded.tree.nodes
        for number in range(5, 20):
            loaded.plain.write(nodes[f"{number:02}"], CONTENT[f"{number:02}"])
        found = neighbours(loaded, nodes["01"].chunks[0].offset, 1 << 20)
        assert found is not None
        assert [node.path for member in found.members for node, _ in member.pieces] == [
            "01",
            "02",
            "03",
            "04",
        ]

    bench.run(scenario)


def test_however_many_files_are_missed_at_once_no_byte_is_asked_for_twice(tmp_path: Path) -> None:
    bench = layer(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        async with anyio.create_task_group() as tasks:
            for name in sorted(CONTENT, key=lambda name: hash(name[::-1])):
                tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes[name])

    bench.run(scenario)
    assert {name: bench.plain(name) for name in here(bench)} == CONTENT
    spans = sorted(bench.blob.asked)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_request_that_stalls_holds_up_nobody_elses_file(tmp_path: Path) -> None:
    bench = layer(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        stuck = bench.blob.gate = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ondemand.fetch, loaded, loaded.tree.nodes["00"])
            await until(lambda: bench.blob.running == 1)
            bench.blob.gate = anyio.Event()
            bench.blob.gate.set()
            await ondemand.fetch(loaded, loaded.tree.nodes["03"])
            assert here(bench)[0] == "03"
            stuck.set()

    bench.run(scenario)
    assert bench.plain("00") == CONTENT["00"]
