"""Numbers that several processes see, at no cost: u64 in mapped memory."""

from __future__ import annotations

import mmap
import os

_SIZE = 8


def shared_words(count: int, path: str) -> memoryview[int]:
    """`count` numbers in the file `path`, made if it is not there.

    Each assignment is one store; struct.pack_into clears the bytes first, and a reader may see that.
    Raises OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Not ftruncate: a write to a mapped hole is a SIGBUS where the disk is full.
        os.posix_fallocate(fd, 0, count * _SIZE)
        return memoryview(mmap.mmap(fd, count * _SIZE)).cast("Q")
    finally:
        os.close(fd)
