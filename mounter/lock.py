"""Locks between processes: flock(2) on a file that may be removed by its holder. Blocking."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the exclusive lock of the file `path`, made if absent; a process that dies gives it up.

    The holder may unlink `path`: whoever waited for the old file then takes a new one. Not reentrant,
    and between threads of a process it excludes as well. Raises OSError if `path` cannot be opened.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_still(fd, path):
                yield
                return
        finally:
            os.close(fd)


def is_locked(path: str) -> bool:
    """Whether a process holds the flock of a file; False if there is no such file, which is not made."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_still(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
