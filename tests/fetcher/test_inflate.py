"""Inflating members: bounded, in any slicing, and errors of one kind."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FormatError
from fetcher.inflate import MemberInflater, inflate

SLICE = 4 << 20


def feed(inflater: MemberInflater, member: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    position = 0
    while position < len(member):
        block = member[position : position + next(sizes)]
        yield from inflater.feed(memoryview(block))
        position += len(block)


def cycle(sizes: list[int]) -> Iterator[int]:
    while True:
        yield from sizes


@settings(deadline=None)
@given(data=st.binary(max_size=5000), limit=st.integers(0, 6000))
def test_no_more_than_the_limit_comes_out(data: bytes, limit: int) -> None:
    assert inflate(gzip.compress(data), limit or 1) == data[: limit or 1]


def test_what_follows_the_member_is_left_alone() -> None:
    assert inflate(gzip.compress(b"first") + gzip.compress(b"second"), 100) == b"first"
    assert inflate(gzip.compress(b"first") + b"no gzip at all", 100) == b"first"


def test_a_view_is_as_good_as_bytes() -> None:
    assert inflate(memoryview(b"xx" + gzip.compress(b"content"))[2:], 100) == b"content"


def test_truncated_member_gives_what_there_is() -> None:
    member = gzip.compress(os.urandom(10_000))
    assert len(inflate(member[:5000], 20_000)) < 10_000
    assert inflate(member[:3], 10) == b""
    assert inflate(b"", 10) == b""


@pytest.mark.parametrize(
    "junk", [b"this is no gzip", b"\x1f\x8b\x09 and so on", b"PK\x03\x04 and so on", bytes(100)]
)
def test_junk_is_a_format_error(junk: bytes) -> None:
    with pytest.raises(FormatError, match="not a gzip member"):
        inflate(junk, 1000)
    with pytest.raises(FormatError, match="not a gzip member"):
        list(MemberInflater(1000).feed(junk))


def test_wrong_checksum_is_a_format_error() -> None:
    member = bytearray(gzip.compress(b"content"))
    member[-8] ^= 1
    with pytest.raises(FormatError):
        inflate(bytes(member), 1000)


def test_zlib_and_raw_streams_are_no_gzip() -> None:
    with pytest.raises(FormatError):
        inflate(zlib.compress(b"content"), 1000)


@settings(deadline=None)
@given(junk=st.binary(max_size=300), position=st.integers(0, 400), data=st.binary(max_size=300))
def test_arbitrary_bytes_give_bytes_or_a_format_error(junk: bytes, position: int, data: bytes) -> None:
    good = gzip.compress(data)
    for member in (junk, good[:10] + junk, good[:position] + junk + good[position:]):
        with contextlib.suppress(FormatError):
            assert len(inflate(member, 200)) <= 200
        with contextlib.suppress(FormatError):
            assert len(b"".join(MemberInflater(200).feed(member))) <= 200


@settings(deadline=None)
@given(
    data=st.binary(max_size=3000),
    repeat=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    limit=st.integers(1, 150_000),
)
def test_piece_by_piece_is_the_same_as_at_once(
    data: bytes, repeat: int, sizes: list[int], limit: int
) -> None:
    member = gzip.compress(data * repeat)
    assert b"".join(feed(MemberInflater(limit), member, cycle(sizes))) == (data * repeat)[:limit]


def test_slices_are_bounded_and_the_bomb_stops_at_its_limit() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < 100_000
    limit = 20 << 20
    slices = [len(out) for out in feed(MemberInflater(limit), bomb, cycle([4096]))]
    assert sum(slices) == limit
    assert max(slices) <= SLICE


def test_one_feed_of_a_whole_bomb_is_sliced_too() -> None:
    slices = [len(out) for out in MemberInflater(10 << 20).feed(gzip.compress(bytes(64 << 20)))]
    assert sum(slices) == 10 << 20
    assert max(slices) <= SLICE


def test_feeding_on_after_the_end_or_the_limit_gives_nothing() -> None:
    inflater = MemberInflater(3)
    assert b"".join(inflater.feed(gzip.compress(b"content"))) == b"con"
    assert list(inflater.feed(b"junk")) == []
    ended = MemberInflater(100)
    assert b"".join(ended.feed(gzip.compress(b"content"))) == b"content"
    assert list(ended.feed(b"junk")) == []
