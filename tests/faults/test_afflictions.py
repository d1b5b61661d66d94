"""A round of every fault, on one node. The seed is printed; LAYERGATE_FAULTS_SEED repeats a run."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Final

import pytest

from tests.faults.afflictions import AFFLICTIONS, Affliction
from tests.faults.rounds import OUTAGE, Round, outlast, resident, used_once
from tests.faults.soak import lose_network, lose_power, table
from tests.faults.world import Reader, Seen, World, world

SEED: Final = int(os.environ.get("LAYERGATE_FAULTS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.containerd, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def node() -> Iterator[World]:
    """A node; at the end everything is removed, and nothing may be left of what the faults have met."""
    with world() as running:
        before = used_once(running)
        yield running
        running.clear()
        running.until_nothing_leaks(before)


@pytest.fixture(scope="module")
def reader(node: World) -> Iterator[Reader]:
    """Somebody who reads a container all the time that has everything already."""
    with resident(node, SEED) as (image, root):
        seen = Seen()
        with Reader(root, image, seen, f"{SEED} resident", here=True) as reader:
            yield reader
        assert reader.read_all() == []
        reader.check()
        assert (seen.errors_here, seen.errors_missing) == (0, 0)


@pytest.mark.parametrize("affliction", AFFLICTIONS, ids=lambda one: one.name)
def test_it_is_survived(node: World, reader: Reader, affliction: Affliction) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown on failure
    Round(node, affliction, f"{SEED} {affliction.name}").run(reader)
    assert node.seen[affliction.name].errors_here == 0, node.seen[affliction.name]


def test_a_long_outage_is_survived(node: World, reader: Reader) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown on failure
    outlast(node, f"{SEED} outage", 15)
    seen = node.seen[OUTAGE]
    assert (seen.containers, seen.errors_here) == (2, 0)
    reader.check()


def test_a_lost_network_is_survived() -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown on failure
    seen = lose_network(1, SEED)
    assert (seen.rounds, seen.errors_here) == (1, 0)
    assert seen.reads > 100


def test_power_losses_are_survived() -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown on failure
    seen = lose_power(2, SEED)
    assert (seen.rounds, seen.errors_here) == (2, 0)
    assert seen.reads > 100


def test_the_table_of_a_soak_has_a_row_for_each_fault_and_one_for_all() -> None:
    seen = {AFFLICTIONS[0].name: Seen(rounds=1, reads=10), "power loss": Seen(rounds=2, reads=5)}
    lines = table(seen, 7, 120).splitlines()
    assert lines[0] == "Seed 7, 2 minutes, 3 rounds."
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        [f"| {AFFLICTIONS[0].name}", "1"],
        ["| power loss", "2"],
        ["| all", "3"],
    ]
    assert lines[-1].split(" | ")[3] == "15"
