"""Inflating compression members, never further than what the caller expects of them. Pure; no I/O.

A member is a gzip member (eStargz) or begins with a zstd frame (zstd:chunked), and says itself which it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from isal import isal_zlib

from fetcher.errors import FormatError

_SLICE: Final = 4 << 20
_ZSTD: Final = 0x28
"""The first byte of a zstd frame; that of a gzip member is 0x1f."""


def inflate(member: bytes | memoryview, limit: int) -> bytes:
    """The first `limit` bytes of a member's output, fewer if it has no more.

    Raises FormatError if it is no member.
    """
    if member and member[0] == _ZSTD:
        from fetcher.zstd import decompress  # late, as most never need it

        return decompress(member, limit)
    try:
        return isal_zlib.decompressobj(31).decompress(member, limit)
    except isal_zlib.IsalError as error:  # type: ignore[misc] # isal's stubs call the class an instance
        raise FormatError(f"not a gzip member: {error}") from error


class _Inflater(Protocol):
    """Inflates one member of one kind, piece by piece."""

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]: ...


class MemberInflater:
    """Inflates one member piece by piece, for members too large to hold.

    Feed compressed bytes; get output in slices of at most 4 MiB. Stops at `limit` bytes of output.
    """

    __slots__ = ("_inflater", "_limit")

    def __init__(self, limit: int) -> None:
        self._inflater: _Inflater | None = None
        self._limit = limit

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Output that `data` makes available; raises FormatError if it is no member."""
        if not data:
            return
        if self._inflater is None:
            self._inflater = _inflater(data[0], self._limit)
        yield from self._inflater.feed(data)


def _inflater(first: int, limit: int) -> _Inflater:
    """What inflates a member that begins with the byte `first`."""
    if first == _ZSTD:
        from fetcher.zstd import FrameDecompressor  # late, as most never need it

        return FrameDecompressor(limit)
    return _GzipInflater(limit)


class _GzipInflater:
    __slots__ = ("_left", "_object")

    def __init__(self, limit: int) -> None:
        self._object = isal_zlib.decompressobj(31)
        self._left = limit

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        pending: bytes | memoryview = data
        while self._left and not self._object.eof:
            try:
                out = self._object.decompress(pending, min(self._left, _SLICE))
            except isal_zlib.IsalError as error:  # type: ignore[misc] # isal's stubs call the class an instance
                raise FormatError(f"not a gzip member: {error}") from error
            if not out:
                return
            self._left -= len(out)
            yield out
            pending = self._object.unconsumed_tail
