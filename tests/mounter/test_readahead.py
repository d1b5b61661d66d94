"""How many bytes are asked for behind a missed file, for readers of several kinds."""

from __future__ import annotations

from typing import Final

import pytest

from mounter.link import LinkEstimate
from mounter.readahead import LEAST, ReadAhead

MOST: Final = 2 << 20
FAST: Final = LinkEstimate(bandwidth=100e6, round_trip=0.005)
USUAL: Final = 500_000
"""What comes over FAST in a round trip."""


def asked(ahead: ReadAhead, start: int, *, most: int = MOST, link: LinkEstimate = FAST) -> int:
    """What is asked for behind a file of 1,000 bytes at `start`; it is all there."""
    size = ahead.size(start, link, most)
    ahead.asked(start + 1000 + size)
    return size


def test_who_goes_on_where_it_ended_gets_twice_as_much_up_to_the_most() -> None:
    ahead, position, sizes = ReadAhead(), 0, []
    for gap in (0, 0, 64 << 10, 0):
        position += gap
        sizes.append(asked(ahead, position))
        position += 1000 + sizes[-1]
    assert sizes == [USUAL, 2 * USUAL, 4 * USUAL, MOST]


@pytest.mark.parametrize("aside", [-1, (64 << 10) + 1])
def test_who_does_not_gets_the_usual(aside: int) -> None:
    ahead, position = ReadAhead(), 0
    for _ in range(5):
        size = asked(ahead, position)
        assert size == USUAL
        position += 1000 + size + aside


def test_a_miss_elsewhere_takes_back_half() -> None:
    ahead, position = ReadAhead(), 0
    for _ in range(4):
        position += 1000 + asked(ahead, position)
    assert asked(ahead, 1 << 40) == MOST // 2
    assert asked(ahead, 1 << 41) == MOST // 4
    assert asked(ahead, position) == MOST // 2, "who reads in order goes on"


def test_several_readers_are_told_apart() -> None:
    ahead = ReadAhead()
    positions = [number << 40 for number in range(50)]
    for number, position in enumerate(positions):
        positions[number] += 1000 + asked(ahead, position)
    sizes = [asked(ahead, position) for position in positions]
    assert sizes[0] == 2 * USUAL
    assert sizes[-1] == MOST


def test_nobody_goes_on_twice_at_the_same_place() -> None:
    ahead = ReadAhead()
    position = 1000 + asked(ahead, 0)
    assert [ahead.size(position, FAST, MOST) for _ in range(3)] == [2 * USUAL, USUAL, USUAL]


@pytest.mark.parametrize(
    ("bandwidth", "round_trip", "usual", "longest"),
    [
        (1e6, 0.001, LEAST, 250_000),
        (100_000, 0.001, LEAST, LEAST),
        (1e6, 1.0, 1_000_000, 1_000_000),
        (1e9, 0.001, 1_000_000, MOST),
        (1e9, 1.0, MOST, MOST),
    ],
)
def test_it_depends_on_the_link(bandwidth: float, round_trip: float, usual: int, longest: int) -> None:
    ahead, position = ReadAhead(), 0
    link = LinkEstimate(bandwidth=bandwidth, round_trip=round_trip)
    sizes = []
    for _ in range(8):
        sizes.append(asked(ahead, position, link=link))
        position += 1000 + sizes[-1]
    assert (sizes[0], sizes[-1]) == (usual, longest)
    assert sizes == sorted(sizes)


def test_it_is_never_more_than_is_allowed() -> None:
    ahead, position = ReadAhead(), 0
    for _ in range(4):
        size = asked(ahead, position, most=5000)
        assert size == 5000
        position += 1000 + size
