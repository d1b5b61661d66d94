"""What a compressing process does: members out of extents, and digests. Blocking; loads little.

The gzip members are libdeflate's: for whole buffers, which members are, it is four times as fast as zlib at
level 9, and its output smaller. Same bytes in give the same bytes out, wherever and in whatever order.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

import deflate

from fetcher.convert.extents import Extent, blocks, read
from fetcher.convert.options import LayerFormat


class Uncompressed(NamedTuple):
    """A member as it goes to a compressing process; `spans` are the pieces of it that are to be hashed."""

    extents: list[Extent]
    spans: list[tuple[int, int]]


class Compressed(NamedTuple):
    """Members behind one another, their sizes, and the sha256 of all their spans, 32 bytes each."""

    data: bytes
    sizes: list[int]
    digests: bytes


def compress_members(source: str, form: LayerFormat, level: int, members: list[Uncompressed]) -> Compressed:
    """Compress members, whose extents lie in the file `source`. Raises FormatError, OSError."""
    compress = compressor(form, level)
    data = []
    digests = []
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for extents, spans in members:
            content = memoryview(read(fd, extents))
            digests += [hashlib.sha256(content[start : start + size]).digest() for start, size in spans]
            data.append(compress(content))
    finally:
        os.close(fd)
    return Compressed(b"".join(data), [len(member) for member in data], b"".join(digests))


def digest_extents(source: str, extents: tuple[Extent, ...]) -> str:
    """The sha256, hexadecimal, of extents in the file `source`. Raises FormatError, OSError."""
    digest = hashlib.sha256()
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for block in blocks(fd, extents):
            digest.update(block)
    finally:
        os.close(fd)
    return digest.hexdigest()


def compress_bytes(form: LayerFormat, level: int, data: bytes) -> bytes:
    """One gzip member or zstd frame."""
    return bytes(compressor(form, level)(data))


@functools.lru_cache(maxsize=4)
def compressor(form: LayerFormat, level: int) -> Callable[[bytes | memoryview], bytes | bytearray]:
    """What makes one gzip member or zstd frame of all of a buffer."""
    if form is LayerFormat.ZSTD_CHUNKED:
        from zstandard import ZstdCompressor  # late: most layers are gzip

        return ZstdCompressor(level=level).compress
    return functools.partial(_gzip, level=level)


def _gzip(data: bytes | memoryview, *, level: int) -> bytearray:
    return deflate.gzip_compress(data, level)
