"""Which parts of a file are in the page cache: mincore(2). Blocking; needs root."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import Final

from fetcher.record import Range

LARGE: Final = 1 << 20
"""Bytes of a file whose parts are worth telling apart."""
GAP: Final = 64 << 10
"""Fewer bytes between two parts that were read are not told apart: a chunk has 4 MiB."""
_WINDOW: Final = 1 << 30

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def forget_large_files(root: str) -> None:
    """Have the page cache drop the content of large files below `root`, which is a file system of its own.

    Raises OSError.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _checked(_libc.syncfs(fd))
    finally:
        os.close(fd)
    for path in _large_files(root):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def resident_ranges(path: str) -> list[Range] | None:
    """What of the file is in the page cache, in ascending order; None for a file that is not large.

    Gaps of less than GAP count as read. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        size = os.fstat(fd).st_size
        if size < LARGE:
            return None
        found: list[Range] = []
        for start in range(0, size, _WINDOW):
            pages = _resident_pages(fd, start, min(_WINDOW, size - start))
            for first, last in _runs(pages):
                begin, end = start + first * mmap.PAGESIZE, min(start + last * mmap.PAGESIZE, size)
                if found and begin - found[-1][1] < GAP:
                    begin = found.pop()[0]
                found.append((begin, end))
        return found
    finally:
        os.close(fd)


def _resident_pages(fd: int, start: int, length: int) -> bytes:
    """A byte a page, 1 where it is in the page cache."""
    vector = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
    # Private and writable only because ctypes gives the address of nothing else; no page is touched.
    with mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, offset=start) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        try:
            _checked(_libc.mincore(ctypes.addressof(view), length, vector))
        finally:
            del view
    return bytes(byte & 1 for byte in vector.raw)


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _runs(pages: bytes) -> Iterator[tuple[int, int]]:
    """The half-open runs of ones."""
    start = pages.find(1)
    while start >= 0:
        end = pages.find(0, start)
        if end < 0:
            end = len(pages)
        yield start, end
        start = pages.find(1, end)


def _large_files(root: str) -> Iterator[str]:
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if status.st_size >= LARGE and os.path.isfile(path) and not os.path.islink(path):
                yield path
