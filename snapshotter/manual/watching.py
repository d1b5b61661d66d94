"""Waiting for the kernel's word that something was mounted or unmounted in our namespace."""

from __future__ import annotations

import asyncio
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
        self._changed = asyncio.Event()

    async def next(self) -> None:
        """Return after the next change since this returned before, or after some seconds without one."""
        with anyio.move_on_after(_LONGEST_SECONDS):
            await self._changed.wait()
        self._changed.clear()

    def note(self) -> None:
        """There was a change."""
        self._poll.poll(0)
        self._changed.set()


@contextmanager
def mount_changes() -> Iterator[MountChanges]:
    """Begin to watch; nothing that changes from here on is missed. In asyncio only."""
    loop = asyncio.get_running_loop()
    fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # asyncio does not know POLLPRI, by which mountinfo tells; an epoll that does is readable itself.
        with select.epoll() as poll:
            poll.register(fd, select.EPOLLPRI | select.EPOLLERR)
            changes = MountChanges(poll)
            # Once for good: mountinfo tells of a change once, and the loop's look at a descriptor that is
            # added uses that up.
            loop.add_reader(poll.fileno(), changes.note)
            try:
                yield changes
            finally:
                loop.remove_reader(poll.fileno())
    finally:
        os.close(fd)
