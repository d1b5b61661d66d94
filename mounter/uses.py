"""Who needs what: META trees, lazy lowers and the gate are taken away only when no process uses them.

    ROOT/uses/<name>        flock: shared, held by each process that uses <name>;
                            exclusive, held for the moment of taking it away

<name> is a layer key (its META), a lazy lower's id, or `gate` (the mounter). What is mounted stays without
us: a use matters from before the making of one thing until the next one stands on it. A process that dies
gives up its uses, and what it leaves is taken away by the next one that calls `release_unused`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from mounter.lowers import lazy_lowers, release_lazy_lower
from mounter.meta import metas, release_meta

GATE: Final = "gate"
"""The name under which the mounter is used."""


class Uses:
    """The uses of one holder; counted, so `add` and `drop` nest. Blocking; one thread at a time."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._held: dict[str, tuple[int, int]] = {}

    def add(self, name: str) -> None:
        """Use `name` from now on; waits for a process that is just taking it away. Raises OSError."""
        fd, count = self._held.get(name) or (_lock(self._root, name, fcntl.LOCK_SH), 0)
        self._held[name] = fd, count + 1

    def drop(self, name: str) -> None:
        """Undo one `add`."""
        fd, count = self._held.pop(name)
        if count > 1:
            self._held[name] = fd, count - 1
        else:
            os.close(fd)

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def close(self) -> None:
        """Drop all."""
        while self._held:
            _, (fd, _) = self._held.popitem()
            os.close(fd)


@contextmanager
def unused(root: str, name: str) -> Iterator[bool]:
    """Whether nobody uses `name`, in this process or another; if so, nobody begins to inside the block."""
    try:
        fd = _lock(root, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(FileNotFoundError):
            os.unlink(_path(root, name))
        os.close(fd)


def release_unused_lower(root: str, lazy: str) -> bool:
    """Take a lazy lower away if nobody uses it; whether it is gone. Raises MountFailed, OSError."""
    with unused(root, lazy) as free:
        if free:
            release_lazy_lower(root, lazy)
    return free


def release_unused_meta(root: str, layer: str) -> bool:
    """Take a layer's META away if nobody uses it; whether it is gone. Raises MountFailed, OSError."""
    with unused(root, layer) as free:
        if free:
            release_meta(root, layer)
    return free


def release_unused(root: str) -> None:
    """Take away every lazy lower and META that nobody uses. Raises MountFailed, OSError."""
    for lower in lazy_lowers(root):
        release_unused_lower(root, lower.id)
    for layer in metas(root):
        release_unused_meta(root, layer)


def forget_unused(root: str) -> None:
    """Remove the lock files that nobody holds, which processes left that were killed. Raises OSError."""
    with suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(root, "uses")):
            with unused(root, name):
                continue


def _lock(root: str, name: str, operation: int) -> int:
    """The locked file's descriptor. A holder may unlink the file, so it is looked at again."""
    path = _path(root, name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, operation)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _path(root: str, name: str) -> str:
    return os.path.join(root, "uses", name)
