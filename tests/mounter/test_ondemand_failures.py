"""Fetching on demand where sources fail: what is refused, tried again and raised."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from fetcher.errors import FetchError, RegistryNotFound, RegistryUnreachable
from fetcher.store import FileSource
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.partial import Arrival, PartialFile
from mounter.settings import MounterSettings
from tests.estargz import build, file
from tests.mounter.fetching import FILES, NOISE, Bench, bench


def test_wrong_bytes_are_refused_and_the_next_source_asked(tmp_path: Path) -> None:
    node = bench(tmp_path)
    node.store.add_sources(node.key, [FileSource("b")], [])
    falsified = bytearray(node.blob.data)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        chunk, last = loaded.tree.nodes["pieces"].chunks[3:]
        falsified[(chunk.offset + chunk.end) // 2] ^= 1
        node.blobs["b"].data = bytes(falsified)
        await ondemand.fetch(loaded, loaded.tree.nodes["pieces"])
        # The last chunk is in a thread of its own, and may be here by then.
        assert node.blobs["a"].asked in ([(chunk.offset, chunk.end)], [(chunk.offset, last.end)])
        await ondemand.fetch(loaded, loaded.tree.nodes["small"])
        assert len(node.blobs["a"].asked) == 2, "the source that served comes first from then on"

    node.run(scenario)
    assert node.plain("pieces") == NOISE


def test_a_chunk_that_is_here_outlives_what_another_source_says_of_it(tmp_path: Path) -> None:
    """One member, too large to hold: its first source fails half-way, the second has a wrong beginning."""
    noise = random.Random(6).randbytes(4_000_000)
    layer = build(
        [file("zeros", bytes(40_000_000)), file("pieces", noise)], chunk_size=500_000, min_chunk_size=1 << 30
    )
    node = Bench(tmp_path, MounterSettings(), layer)
    node.store.add_sources(node.key, [FileSource("a"), FileSource("b")], [])

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        first = layer.blob.index(noise[100_000:100_100])
        falsified = bytearray(layer.blob)
        falsified[first] ^= 1
        node.blobs["b"].data = bytes(falsified)
        node.blobs["a"].error = RegistryUnreachable("unplugged", host="registry.test")
        node.blobs["a"].fail_after = 2_500_000
        await ondemand.fetch(loaded, pieces)
        assert len(node.blobs["a"].asked) == len(node.blobs["b"].asked) == 1

    node.run(scenario)
    assert node.plain("pieces") == noise


def test_a_new_source_in_the_record_is_found_after_a_failure(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        node.blob.error = RegistryNotFound("gone", host="registry.test")
        with pytest.raises(RegistryNotFound):
            await ondemand.fetch(loaded, loaded.tree.nodes["small"])
        node.store.add_sources(node.key, [FileSource("b")], [])
        await ondemand.fetch(loaded, loaded.tree.nodes["small"])

    node.run(scenario)
    assert node.plain("small") == FILES["small"]


def test_a_patient_fetch_outlasts_a_failure_that_passes(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        node.blob.error = RegistryUnreachable("unplugged", host="registry.test")
        with pytest.raises(RegistryUnreachable):
            await ondemand.fetch(loaded, loaded.tree.nodes["small"])
        node.blob.failures = 2
        await ondemand.fetch(loaded, loaded.tree.nodes["small"], patient=True)

    node.run(scenario)
    assert len(node.blob.asked) == 4
    assert node.plain("small") == FILES["small"]


def test_a_failure_that_stays_is_not_waited_for(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        node.blob.data = bytes(len(node.blob.data))
        with pytest.raises(FetchError):
            await ondemand.fetch(loaded, loaded.tree.nodes["small"], patient=True)

    node.run(scenario)
    assert len(node.blob.asked) == 1


def test_what_came_before_a_failure_is_not_fetched_again(tmp_path: Path) -> None:
    node = bench(tmp_path)

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        pieces = loaded.tree.nodes["pieces"]
        node.blob.error = RegistryUnreachable("unplugged", host="registry.test")
        node.blob.fail_after = 250_000
        with pytest.raises(RegistryUnreachable):
            await ondemand.fetch(loaded, pieces)
        node.blob.error = None
        await ondemand.fetch(loaded, pieces)
        assert node.blob.asked[1] == (pieces.chunks[2].offset, pieces.chunks[-1].end)

    node.run(scenario)
    assert node.plain("pieces") == NOISE


@pytest.mark.parametrize("way", ["fetch", "bring"])
def test_a_failure_right_behind_the_first_chunk_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    node = bench(tmp_path)
    asked = 0

    async def scenario(ondemand: OnDemand, loaded: LoadedLayer) -> None:
        def ask(_loaded: object, partial: PartialFile, indexes: Sequence[int], **_: object) -> None:
            nonlocal asked
            asked += 1
            partial.arrivals.update((index, Arrival()) for index in indexes)
            ondemand._tasks.start_soon(settle, partial)

        async def settle(partial: PartialFile) -> None:
            partial.have[0] = 1
            for index in list(partial.arrivals):
                arrival = partial.arrivals.pop(index)
                arrival.error = RegistryNotFound("gone", host="registry.test") if index else None
                arrival.settled.set()

        monkeypatch.setattr(ondemand, "_ask", ask)
        pieces = loaded.tree.nodes["pieces"]
        with ondemand.using(loaded, pieces) as partial, pytest.raises(RegistryNotFound):
            await (
                ondemand.fetch(loaded, pieces)
                if way == "fetch"
                else ondemand.bring(loaded, partial, range(len(pieces.chunks)))
            )

    node.run(scenario)
    assert asked == 1
