"""Decompressing zstd members: bounded, in any slicing, and errors of one kind."""

from __future__ import annotations

import contextlib
import os
import threading
import tracemalloc
from collections.abc import Iterator
from itertools import cycle

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FormatError
from fetcher.inflate import MemberInflater, inflate
from tests.zstd_chunked import skippable

SLICE = 4 << 20


def frame(data: bytes, *, sized: bool = False, checksum: bool = True, level: int = 3) -> bytes:
    """One frame; a `sized` one says in its header how much it holds, as that of a small file does."""
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=sized)
    if sized:
        return compressor.compress(data)
    stream = compressor.compressobj()
    return stream.compress(data) + stream.flush()


def bomb(megabytes: int) -> bytes:
    """A frame of zeros, compressed to a few KB."""
    stream = zstandard.ZstdCompressor().compressobj()
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(megabytes)) + stream.flush()


def feed(inflater: MemberInflater, member: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    position = 0
    while position < len(member):
        block = member[position : position + next(sizes)]
        yield from inflater.feed(memoryview(block))
        position += len(block)


@settings(deadline=None)
@given(data=st.binary(max_size=5000), limit=st.integers(1, 6000), sized=st.booleans())
def test_no_more_than_the_limit_comes_out(data: bytes, limit: int, sized: bool) -> None:
    assert inflate(frame(data, sized=sized), limit) == data[:limit]


def test_what_follows_is_left_alone_when_enough_is_here() -> None:
    assert inflate(frame(b"first") + b"no frame at all", 5) == b"first"
    assert b"".join(MemberInflater(5).feed(frame(b"first") + b"no frame at all")) == b"first"


def test_frames_that_follow_one_another_are_one_stream() -> None:
    member = frame(b"first") + skippable(b"not to be seen") + frame(b"second")
    assert inflate(member, 100) == b"firstsecond"
    assert b"".join(feed(MemberInflater(8), member, cycle([1]))) == b"firstsec"


def test_a_view_is_as_good_as_bytes() -> None:
    assert inflate(memoryview(b"xx" + frame(b"content"))[2:], 100) == b"content"


def test_truncated_frame_gives_what_there_is() -> None:
    member = frame(os.urandom(300_000))
    assert 0 < len(inflate(member[:200_000], 300_000)) < 300_000
    assert 0 < len(b"".join(MemberInflater(300_000).feed(member[:200_000]))) < 300_000
    assert inflate(member[:3], 10) == b""


@pytest.mark.parametrize("junk", [b"( is the first byte of a frame, too", b"\x28\xb5\x2f\xfc" + bytes(20)])
def test_junk_is_a_format_error(junk: bytes) -> None:
    with pytest.raises(FormatError, match="not a zstd frame"):
        inflate(junk, 1000)
    with pytest.raises(FormatError, match="not a zstd frame"):
        list(MemberInflater(1000).feed(junk))


def test_wrong_checksum_is_a_format_error() -> None:
    member = bytearray(frame(b"content"))
    member[-1] ^= 1
    with pytest.raises(FormatError):
        inflate(bytes(member), 1000)


def test_window_beyond_reason_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    member = stream.compress(b"x" * 1000) + stream.flush()
    with pytest.raises(FormatError, match="memory"):
        inflate(member, 1000)
    with pytest.raises(FormatError, match="memory"):
        list(MemberInflater(1000).feed(member))


@settings(deadline=None)
@given(junk=st.binary(max_size=300), position=st.integers(0, 400), data=st.binary(max_size=300))
def test_arbitrary_bytes_give_bytes_or_a_format_error(junk: bytes, position: int, data: bytes) -> None:
    good = frame(data)
    for member in (good[:4] + junk, good[:10] + junk, good[:position] + junk + good[position:]):
        with contextlib.suppress(FormatError):
            assert len(inflate(member, 200)) <= 200
        with contextlib.suppress(FormatError):
            assert len(b"".join(MemberInflater(200).feed(member))) <= 200
    assert inflate(good, 1000) == data, "a failure must not spoil what comes next"


@settings(deadline=None)
@given(
    data=st.binary(max_size=3000),
    repeat=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=8),
    limit=st.integers(1, 700_000),
    frames=st.integers(1, 3),
    sized=st.booleans(),
)
def test_piece_by_piece_is_the_same_as_at_once(
    data: bytes, repeat: int, sizes: list[int], limit: int, frames: int, sized: bool
) -> None:
    whole = data * repeat
    member = frame(whole, sized=sized) * frames
    assert b"".join(feed(MemberInflater(limit), member, cycle(sizes))) == (whole * frames)[:limit]
    assert inflate(member, limit) == (whole * frames)[:limit]


@pytest.mark.parametrize("size", [SLICE - 1, SLICE, SLICE + 1, SLICE + (128 << 10), 3 * SLICE])
@pytest.mark.parametrize("block", [1000, 131_075, 1 << 30])
def test_output_about_as_large_as_a_slice(size: int, block: int) -> None:
    """Where what was fed is used up and output still waits: nothing of it may be lost."""
    for data in (bytes(size), os.urandom(size)):
        member = frame(data)
        assert b"".join(feed(MemberInflater(size + 1), member, cycle([block]))) == data


def test_slices_are_bounded_and_the_bomb_stops_at_its_limit() -> None:
    member = bomb(256)
    assert len(member) < 100_000
    limit = 20 << 20
    for sizes in (cycle([4096]), cycle([1 << 20])):
        tracemalloc.start()
        try:
            slices = [len(out) for out in feed(MemberInflater(limit), member, sizes)]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sum(slices) == limit
        assert max(slices) <= SLICE
        assert peak < 4 * SLICE


def test_bomb_at_once_takes_no_more_than_its_limit() -> None:
    member = bomb(256)
    tracemalloc.start()
    try:
        assert inflate(member, 1000) == bytes(1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_feeding_on_after_the_limit_gives_nothing() -> None:
    inflater = MemberInflater(3)
    assert list(inflater.feed(b"")) == []
    assert b"".join(inflater.feed(frame(b"content"))) == b"con"
    assert list(inflater.feed(b"junk")) == []


def test_many_threads_at_a_time() -> None:
    contents = [os.urandom(20_000) * 20 for _ in range(8)]
    failures: list[int] = []

    def work(number: int) -> None:
        member = frame(contents[number])
        if any(inflate(member, 400_000) != contents[number] for _ in range(20)):
            failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
