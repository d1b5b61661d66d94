"""How fast a layer streams in the background, in a worker and in what is forked off it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import anyio

from fetcher.demand import Demand
from fetcher.words import shared_words

_YIELD_SECONDS: Final = 0.004
_LONGEST_YIELD_SECONDS: Final = 5.0
"""So that endless foreground work cannot starve a stream."""
_LISTEN_SECONDS: Final = 0.25
"""How long an order may wait while rate or disk hold a stream back."""
_MEASURE_BYTES: Final = 2 << 20
"""Compressed bytes between two looks at the disk. serve looks once a second, time enough to fill one."""
_RATE, _MIN_FREE, _ORDERS = range(3)


class Limits:
    """Bytes a second (0: no limit) and bytes to be left free on the disk; seen by forked processes, too."""

    def __init__(self) -> None:
        self._values = shared_words(3)

    def set(self, rate: int, min_free: int) -> None:
        """New limits, from now on."""
        self._values[_RATE] = rate
        self._values[_MIN_FREE] = min_free
        self._values[_ORDERS] += 1

    @property
    def rate(self) -> int:
        """Bytes a second; 0 means no limit."""
        return self._values[_RATE]

    @property
    def min_free(self) -> int:
        """Bytes that have to stay free on the disk."""
        return self._values[_MIN_FREE]

    @property
    def orders(self) -> int:
        """How often they were set."""
        return self._values[_ORDERS]


class Pace:
    """Holds one stream back: for foreground work, to its share of the rate, and while the disk is full.

    `listen` is called time and again; what it raises ends the stream. The rate is for `share` streams.
    """

    def __init__(self, root: str, limits: Limits, *, listen: Callable[[], None], share: int) -> None:
        self._root = root
        self._limits = limits
        self._listen = listen
        self._share = share
        self._demand = Demand(root)
        self._unmeasured = 0
        self._orders = 0
        self._started = 0.0
        self._sent = 0

    async def keep(self, count: int) -> None:
        """To be called with the size of each block that came."""
        self._listen()
        until = time.monotonic() + _LONGEST_YIELD_SECONDS
        while self._demand.busy() and time.monotonic() < until:  # noqa: ASYNC110 - another process's flag
            await anyio.sleep(_YIELD_SECONDS)
        await self._keep_to_rate(count)
        await self._wait_for_room(count)

    async def _keep_to_rate(self, count: int) -> None:
        self._begin_anew_if_changed()
        self._sent += count
        while self._limits.rate:
            ahead = self._sent * self._share / self._limits.rate - (time.monotonic() - self._started)
            if ahead <= 0:
                return
            await anyio.sleep(min(ahead, _LISTEN_SECONDS))
            self._listen()
            self._begin_anew_if_changed()

    def _begin_anew_if_changed(self) -> None:
        if self._orders != self._limits.orders:
            self._orders = self._limits.orders
            self._started, self._sent = time.monotonic(), 0

    async def _wait_for_room(self, count: int) -> None:
        self._unmeasured += count
        if self._unmeasured >= _MEASURE_BYTES:
            self._unmeasured = 0
            while _free_bytes(self._root) < self._limits.min_free:
                await anyio.sleep(_LISTEN_SECONDS)
                self._listen()


def _free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
