"""Inflating gzip members, never further than what the caller expects of them. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from isal import isal_zlib

from fetcher.errors import FormatError

_SLICE = 4 << 20


def inflate(member: bytes | memoryview, limit: int) -> bytes:
    """The first `limit` bytes of a gzip member's output, fewer if it has no more.

    Raises FormatError if it is no gzip member.
    """
    try:
        return isal_zlib.decompressobj(31).decompress(member, limit)
    except isal_zlib.IsalError as error:  # type: ignore[misc] # isal's stubs call the class an instance
        raise FormatError(f"not a gzip member: {error}") from error


class MemberInflater:
    """Inflates one member piece by piece, for members too large to hold.

    Feed compressed bytes; get output in slices of at most 4 MiB. Stops at `limit` bytes of output.
    """

    __slots__ = ("_left", "_object")

    def __init__(self, limit: int) -> None:
        self._object = isal_zlib.decompressobj(31)
        self._left = limit

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """Output that `data` makes available; raises FormatError if it is no gzip member."""
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
