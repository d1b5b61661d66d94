"""Work that several tasks want, done once; work in threads that a cancellation ends. On the event loop."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio
from anyio import to_thread

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Once(Generic[K, T]):
    """Results by key, each made by whoever asks first, while the others wait.

    All askers belong to one task group: a failure ends them together.
    """

    def __init__(self) -> None:
        self._made: dict[K, T] = {}
        self._making: dict[K, anyio.Event] = {}

    async def get(self, key: K, make: Callable[[], Awaitable[T]]) -> T:
        """The result of `make`, now or before; raises what it raises."""
        while key not in self._made:
            making = self._making.get(key)
            if making is not None:
                await making.wait()
                continue
            making = self._making[key] = anyio.Event()
            try:
                self._made[key] = await make()
            finally:
                del self._making[key]
                making.set()
        return self._made[key]

    def pop(self, key: K) -> T | None:
        """Forget a result; None if there is none."""
        return self._made.pop(key, None)


class Stopped(Exception):
    """Raised in a thread whose work nobody waits for any more."""


async def run_stoppable(work: Callable[[Callable[[], None]], T]) -> T:
    """The result of `work` in a thread. It is given a function to call every now and then.

    When we are cancelled that function raises Stopped, and the thread is waited for.
    """
    stopped, ended = threading.Event(), threading.Event()
    claim = threading.Lock()

    def check() -> None:
        if stopped.is_set():
            raise Stopped

    def run() -> T:
        if not claim.acquire(blocking=False):
            raise Stopped
        try:
            return work(check)
        finally:
            ended.set()

    try:
        return await to_thread.run_sync(run, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        stopped.set()
        if not claim.acquire(blocking=False):  # it has begun, and has to let go of its files
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(ended.wait)
        raise


def adding_up(check: Callable[[], None], done: Callable[[int], None]) -> Callable[[int], None]:
    """Takes how many further bytes are done, tells `done` the sum, and calls `check`."""
    total = 0

    def add(count: int) -> None:
        nonlocal total
        check()
        total += count
        done(total)

    return add
