"""How fast a worker streams its layer in the background."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import anyio

from fetcher.demand import Demand

_YIELD_SECONDS: Final = 0.03
"""The longest time between two looks at who has work: each takes 0.2 ms of processor time from them."""
_LONGEST_YIELD_SECONDS: Final = 5.0
"""So that endless foreground work cannot starve a stream."""
_LISTEN_SECONDS: Final = 0.25
"""How long an order may wait while rate or disk hold a stream back."""
_MEASURE_BYTES: Final = 2 << 20
"""Compressed bytes between two looks at the disk. serve looks once a second, time enough to fill one."""


class Pace:
    """Holds a stream back: for foreground work, to a rate, and while the disk is full. No limits at first.

    `listen` is called time and again; it may `limit`, and what it raises ends the stream.
    """

    def __init__(self, root: str, *, listen: Callable[[], None]) -> None:
        self._root = root
        self._listen = listen
        self._demand = Demand(root)
        self._unmeasured = 0
        self.limit(rate=0, min_free=0)

    def limit(self, *, rate: int, min_free: int) -> None:
        """From now on so many bytes a second (0: no limit), and so many bytes left free on the disk."""
        self._rate = rate
        self._min_free = min_free
        self._started, self._sent = time.monotonic(), 0

    async def keep(self, count: int) -> None:
        """To be called with the size of each block that came."""
        self._listen()
        until = time.monotonic() + _LONGEST_YIELD_SECONDS
        # No event tells of it: the marks are other processes'.
        while (left := self._demand.left()) and time.monotonic() < until:  # noqa: ASYNC110
            await anyio.sleep(min(left, _YIELD_SECONDS))
        await self._keep_to_rate(count)
        await self._wait_for_room(count)

    async def _keep_to_rate(self, count: int) -> None:
        self._sent += count
        while self._rate:
            ahead = self._sent / self._rate - (time.monotonic() - self._started)
            if ahead <= 0:
                return
            await anyio.sleep(min(ahead, _LISTEN_SECONDS))
            self._listen()

    async def _wait_for_room(self, count: int) -> None:
        self._unmeasured += count
        if self._unmeasured >= _MEASURE_BYTES:
            self._unmeasured = 0
            while _free_bytes(self._root) < self._min_free:
                await anyio.sleep(_LISTEN_SECONDS)
                self._listen()


def _free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
