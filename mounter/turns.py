"""Turns of path walks that enter a layer's top directory in the gate at the same time.

The kernel keeps no answer for that directory (`mounter.gate`), and asks for it at each walk. An answer with
another number than before makes it ask anew, and ask everybody else who waits for the same name whether that
number is right. If all of them were answered at once, each walk that gets through would cost one LOOKUP of
each other: 686,000 for 2,000 walks, a minute of the event loop. So they are answered one after another: a
walk has its turn, in which it asks three times at most, until it asks for something in the directory that it
was given.

A turn that does not end, as its thread was killed or waits in the kernel for a thread that waits here, is
given up after a moment, and all that wait are answered. Belongs to the event loop.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import anyio

_QUIET_SECONDS: Final = 0.03
"""A walk takes well under a millisecond from an answer to its next request, if that is not behind others."""
_TURN_SECONDS: Final = 1.0
"""However many others ask meanwhile."""


class _Waiter:
    __slots__ = ("its_turn", "thread", "woken")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.its_turn = False
        self.woken = anyio.Event()


class Turns:
    """The turns of one layer."""

    def __init__(self) -> None:
        self._thread: int | None = None
        """Whose turn it is, by the kernel's number of the thread."""
        self._given = 0
        self._since = 0.0
        self._heard = 0.0
        """When somebody has asked last."""
        self._waiting: deque[_Waiter] = deque()

    async def take(self, thread: int) -> None:
        """Return when `thread` may be answered: it has its turn, or somebody's was given up.

        Threads that the mounter cannot see, of another process namespace, all have the number 0 and one turn.
        """
        now = anyio.current_time()
        waits = self._thread not in (None, thread) and now < self._over
        self._heard = now
        if waits:
            await self._wait(_Waiter(thread))
        self._begin(thread)

    def give(self, inode: int) -> None:
        """The turn's thread is answered with this directory."""
        self._given = inode

    def entered(self, inode: int) -> None:
        """Somebody asks for something in this directory, or below it."""
        if inode == self._given:
            self._given = 0
            self._thread = None
            if self._waiting:
                self._wake(self._waiting.popleft())
                self._nudge()

    async def _wait(self, waiter: _Waiter) -> None:
        """The first one in the queue sees to it that no turn takes for ever."""
        self._waiting.append(waiter)
        try:
            while not waiter.its_turn:
                waiter.woken = anyio.Event()
                if self._waiting[0] is not waiter:
                    await waiter.woken.wait()
                    continue
                with anyio.move_on_at(self._over):
                    await waiter.woken.wait()
                if not waiter.its_turn and anyio.current_time() >= self._over:
                    while self._waiting:
                        self._wake(self._waiting.popleft())
        except BaseException:
            if not waiter.its_turn:
                self._waiting.remove(waiter)
                self._nudge()
            raise

    @property
    def _over(self) -> float:
        """When the turn is given up."""
        return min(self._heard + _QUIET_SECONDS, self._since + _TURN_SECONDS)

    def _begin(self, thread: int) -> None:
        if thread != self._thread:
            self._thread = thread
            self._since = anyio.current_time()

    def _wake(self, waiter: _Waiter) -> None:
        self._begin(waiter.thread)
        self._heard = anyio.current_time()
        waiter.its_turn = True
        waiter.woken.set()

    def _nudge(self) -> None:
        if self._waiting:
            self._waiting[0].woken.set()
