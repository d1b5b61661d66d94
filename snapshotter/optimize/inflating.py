"""A layer's tar out of its file, whatever it is compressed with. Blocking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from fetcher.errors import FormatError
from fetcher.images.decompressing import Decompressor
from fetcher.images.tar_reading import Forward, TarReader
from fetcher.listing import Listing
from fetcher.tree import LayerTree

_PIECE: Final = 1 << 20


class _Inflated:
    """A stream that goes forward alone."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._pieces = self._decompressed(file)
        self._name = name
        self._rest = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """See Forward. Raises FormatError, OSError."""
        if not self._rest:
            try:
                self._rest = memoryview(next(self._pieces, b""))
            except FormatError as error:
                raise FormatError(f"{self._name} is damaged: {error}") from error
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def skip(self, size: int, /) -> None:
        """See Forward. Raises FormatError, OSError."""
        while size and (data := self.read(size)):
            size -= len(data)

    @staticmethod
    def _decompressed(file: BinaryIO) -> Iterator[bytes]:
        decompressor = Decompressor()
        while data := file.read(_PIECE):
            yield from decompressor.feed(data)
        decompressor.finish()


def inflated(file: BinaryIO, name: str) -> Forward:
    """What an open file holds, unpacked if it is gzip or zstd; `name` is what errors call it."""
    return _Inflated(file, name)


def list_layer(path: str) -> LayerTree:
    """What is in the layer in the file `path`. Raises FormatError, OSError."""
    listing = Listing()
    with open(path, "rb") as file:
        for entry in TarReader(inflated(file, path), path):
            listing.add(entry)
    return listing.tree()
