"""Sizes and durations as people write them, and the bounds of free space."""

from __future__ import annotations

import pytest

from snapshotter.cache.limits import Space, enough, limits, min_free, must_wait
from snapshotter.cache.quantities import age_text, parse_duration, parse_share, parse_size, size_text
from snapshotter.config import CacheConfig


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512B", 512),
        ("20GB", 20_000_000_000),
        ("20 gb", 20_000_000_000),
        ("1.5MB", 1_500_000),
        ("16GiB", 16 << 30),
        ("2tib", 2 << 40),
        (" 3KB ", 3000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 2GB", "20 apples", "1,5GB", "20G B", "٣GB", "20Gb/s"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("1.5h", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "24H", "-1h", "1h30m", "a day"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        parse_duration(text)


def test_shares() -> None:
    assert parse_share("10%") == 0.1
    assert parse_share("0.5 %") == 0.005
    for text in ("101%", "10", "-1%", "%"):
        with pytest.raises(ValueError, match="is no share"):
            parse_share(text)


def test_texts() -> None:
    assert [size_text(count) for count in (0, 999, 1000, 12_345_678, 5_000_000_000_000_000)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "12.3 MB",
        "5000.0 TB",
    ]
    assert [age_text(seconds) for seconds in (-5, 59, 60, 7300, 200_000)] == [
        "just now",
        "just now",
        "1 min ago",
        "2 h ago",
        "2 d ago",
    ]


def test_by_default_a_gigabyte_or_a_twentieth_is_kept_free() -> None:
    assert min_free(CacheConfig(), Space(size=100_000_000_000, free=0)) == 1_000_000_000
    assert min_free(CacheConfig(), Space(size=200_000_000, free=0)) == 10_000_000


def test_min_free_as_configured() -> None:
    space = Space(size=1000, free=0)
    assert min_free(CacheConfig(min_free="5GB"), space) == 5_000_000_000
    assert min_free(CacheConfig(min_free="10%"), space) == 100
    assert min_free(CacheConfig(min_free="0"), space) == 0


def test_the_limits_of_a_configuration() -> None:
    found = limits(CacheConfig(max_size="20GB", min_free="400", keep_unused="1h"), Space(1000, 0))
    assert (found.max_size, found.min_free, found.keep_unused) == (20_000_000_000, 500, 3600)
    assert limits(CacheConfig(keep_unused="forever"), Space(1000, 0)).keep_unused is None


def test_streaming_that_waits_goes_on_later_than_it_stopped() -> None:
    assert must_wait(99, 100, waiting=False)
    assert not must_wait(100, 100, waiting=False)
    assert must_wait(100, 100, waiting=True)
    assert must_wait(enough(100) - 1, 100, waiting=True)
    assert not must_wait(enough(100), 100, waiting=True)


def test_without_a_bound_streaming_never_waits() -> None:
    assert not must_wait(0, 0, waiting=False)
    assert not must_wait(0, 0, waiting=True)
