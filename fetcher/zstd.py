"""Decompressing zstd frames, never further than what the caller expects of them. Pure; no I/O.

Frames that follow one another count as one stream, and skippable frames (RFC 8878, section 3.1.2) as
nothing. Loading this module loads `zstandard`, so whoever may never meet a zstd frame imports it late.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from zstandard import ZstdDecompressor, ZstdError

from fetcher.errors import FormatError

_SLICE: Final = 4 << 20
_KEPT: Final = os.cpu_count() or 1

# One costs 8 us to make and may keep a window's size; more are of no use than can work at a time.
_idle: list[ZstdDecompressor] = []


def decompress(frames: bytes | memoryview, limit: int) -> bytes:
    """The first `limit` bytes of what the frames hold, fewer if there are no more. Thread-safe.

    Takes `limit` bytes of memory. Raises FormatError for what is no zstd frame.
    """
    try:
        decompressor = _idle.pop()
    except IndexError:
        decompressor = ZstdDecompressor()
    try:
        out = decompressor.stream_reader(frames, read_across_frames=True).read(limit)
    except ZstdError as error:
        raise FormatError(f"not a zstd frame: {error}") from error
    if len(_idle) < _KEPT:
        _idle.append(decompressor)
    return out


class FrameDecompressor:
    """Decompresses frames piece by piece, for those too large to hold.

    Feed compressed bytes; get output in slices of at most 4 MiB. Stops at `limit` bytes of output.
    """

    __slots__ = ("_fed", "_left", "_reader")

    def __init__(self, limit: int) -> None:
        self._fed = _Fed()
        self._left = limit
        self._reader = ZstdDecompressor().stream_reader(
            self._fed,  # type: ignore[arg-type] # of a file, nothing but `read` is used
            read_across_frames=True,
        )

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Output that `data` makes available; raises FormatError if it is no zstd frame."""
        self._fed.data = data
        while self._left:
            try:
                out = self._reader.read1(min(self._left, _SLICE))
            except _FedUp:
                return
            except ZstdError as error:
                raise FormatError(f"not a zstd frame: {error}") from error
            self._left -= len(out)
            yield out


class _FedUp(Exception):
    """Everything that was fed has been taken."""


class _Fed:
    """What a reader reads from. It raises where it has nothing: an empty answer would be the end for good."""

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data: bytes | memoryview = b""

    def read(self, _size: int) -> bytes | memoryview:
        data, self.data = self.data, b""
        if not data:
            raise _FedUp
        return data
