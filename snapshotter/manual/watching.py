"""Waiting for the kernel's word that something was mounted or unmounted in our namespace."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

_LONGEST_SECONDS: Final = 10.0
"""Looked at anew so often in any case."""


class MountChanges:
    """Changes of the mount table; one task waits at a time."""

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll

    async def next(self) -> None:
        """Return after the next change, or after some seconds without one."""
        # asyncio does not know POLLPRI, by which mountinfo tells; an epoll that does is readable itself.
        with anyio.move_on_after(_LONGEST_SECONDS):
            await anyio.wait_readable(self._poll.fileno())
            self._poll.poll(0)


@contextmanager
def mount_changes() -> Iterator[MountChanges]:
    """Begin to watch; nothing that changes from here on is missed."""
    fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with select.epoll() as poll:
            poll.register(fd, select.EPOLLPRI | select.EPOLLERR)
            yield MountChanges(poll)
    finally:
        os.close(fd)
