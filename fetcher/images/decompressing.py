"""From a layer's blob to its tar, whatever it is compressed with. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from isal import isal_zlib

from fetcher.errors import FormatError
from fetcher.images.recognition import GZIP_MAGIC, ZSTD_MAGIC

_SLICE: Final = 4 << 20
_UNLIMITED: Final = 1 << 62
_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a zstd frame that holds no data; byte 0 is 0x50 to 0x5f."""


class Decompressor:
    """Decompresses a stream: gzip of any number of members, zstd of any number of frames, or nothing."""

    def __init__(self) -> None:
        self._begin = b""
        self._feed: Callable[[bytes], Iterator[bytes]] | None = None
        self._gzip = _Members()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` gives, in slices of at most 4 MiB; raises FormatError."""
        if self._feed is None:
            self._begin += data
            if len(self._begin) < len(ZSTD_MAGIC):
                return iter(())
            self._feed, data = self._choose(self._begin), self._begin
        return self._feed(data)

    def finish(self) -> None:
        """See that nothing is missing at the end; raises FormatError."""
        self._gzip.finish()

    def _choose(self, begin: bytes) -> Callable[[bytes], Iterator[bytes]]:
        if begin.startswith(GZIP_MAGIC):
            return self._gzip.feed
        if begin.startswith(ZSTD_MAGIC) or begin[1:4] == _SKIPPABLE:
            # It takes 15 ms to import.
            from fetcher.zstd import FrameDecompressor

            return FrameDecompressor(_UNLIMITED).feed
        return _as_it_is


def _as_it_is(data: bytes) -> Iterator[bytes]:
    yield data


class _Members:
    """gzip members, one after another; zeros that pad the last one are passed over."""

    def __init__(self) -> None:
        self._object: isal_zlib.Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._object is None:
                data = data.lstrip(b"\0")
                if not data:
                    return
                self._object = isal_zlib.decompressobj(31)
            try:
                out = self._object.decompress(data, _SLICE)
            except isal_zlib.IsalError as error:  # type: ignore[misc] # isal's stubs call the class an instance
                raise FormatError(f"not a gzip member: {error}") from error
            if out:
                yield out
            if self._object.eof:
                data = self._object.unused_data
                self._object = None
            else:
                data = self._object.unconsumed_tail
                if not out and data:
                    raise FormatError("a gzip member that makes no progress")

    def finish(self) -> None:
        if self._object is not None:
            raise FormatError("a gzip member is cut off")
