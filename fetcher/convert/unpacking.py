"""From a layer file of any kind to an uncompressed tar that can be read at any place.

What the file is shows in its first bytes. A plain tar is read where it is; gzip and zstd are decompressed to
a temporary file first, in blocks, so that memory does not depend on what the file holds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from gzip import BadGzipFile
from typing import IO, Final, Protocol

from isal import igzip, isal_zlib

from fetcher.convert.zstd_frames import check_frames
from fetcher.errors import FormatError, SourceNotFound

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", *(bytes([byte]) + b"\x2a\x4d\x18" for byte in range(0x50, 0x60)))
"""A frame, and the skippable frames that a stream may begin with."""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class UnpackedTar:
    """A tar of `size` bytes, open as `fd`; `path` is where other processes find it.

    `source_size` is the size of the file that it came in, in bytes.
    """

    path: str
    fd: int
    size: int
    source_size: int


class _Decompressed(Protocol):
    def readinto(self, buffer: bytearray, /) -> int | None: ...


@contextmanager
def unpacked(source: str, scratch: str) -> Iterator[UnpackedTar]:
    """The tar in the file `source`, in a temporary file in the directory `scratch` if it is compressed.

    Raises SourceNotFound, FormatError for compressed data that are broken, and OSError.
    """
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(open(source, "rb"))
        except FileNotFoundError:
            raise SourceNotFound(f"there is no file {source}") from None
        source_size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        file.seek(0)
        decompress = _decompressor(magic)
        if decompress is not None:
            temporary = stack.enter_context(
                tempfile.NamedTemporaryFile(dir=scratch, prefix="layer-", suffix=".tar")
            )
            decompress(file, temporary)
            temporary.flush()
            file = temporary.file
            source = temporary.name
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise FormatError("the tar is empty: it has not even an end of archive")
        yield UnpackedTar(source, file.fileno(), size, source_size)


def _decompressor(magic: bytes) -> Callable[[IO[bytes], IO[bytes]], None] | None:
    if magic.startswith(_GZIP):
        return _gunzip
    if magic.startswith(_ZSTD):
        return _unzstd
    return None


def _gunzip(source: IO[bytes], target: IO[bytes]) -> None:
    try:
        with igzip.IGzipFile(fileobj=source) as file:  # type: ignore[no-untyped-call] # igzip has no stubs
            _copy(file, target)
    except EOFError:
        raise FormatError(f"the gzip data break off, {_behind(target)}") from None
    except (BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc] # its stub calls the class an instance
        raise FormatError(f"the gzip data are damaged, {_behind(target)}: {error}") from None


def _unzstd(source: IO[bytes], target: IO[bytes]) -> None:
    from zstandard import ZstdDecompressor, ZstdError  # late, as most never need it

    check_frames(source.fileno())
    try:
        with ZstdDecompressor().stream_reader(source, read_across_frames=True, closefd=False) as file:
            _copy(file, target)
    except ZstdError as error:
        raise FormatError(f"the zstd data are damaged, {_behind(target)}: {error}") from None


def _copy(file: _Decompressed, target: IO[bytes]) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        target.write(view[:count])


def _behind(target: IO[bytes]) -> str:
    return f"behind byte {target.tell()} of the tar"
