"""Places for work: how many layers are prepared or streamed at a time. Belongs to serve's event loop."""

from __future__ import annotations

import anyio

from fetcher.demand import HOLD_SECONDS, Demand, Slot


class Preparing:
    """How many layers a container may be waiting for; the demand flag follows it."""

    def __init__(self, demand: Demand, slot: Slot) -> None:
        self._demand = demand
        self._slot = slot
        self.count = 0
        self._until = 0.0

    def hold(self, seconds: float) -> None:
        """Hold the flag up for so long, whatever is being prepared: a container is about to start."""
        self._until = max(self._until, anyio.current_time() + seconds)
        self.refresh()

    def enter(self) -> None:
        """One more."""
        self.count += 1
        self.refresh()

    def leave(self) -> None:
        """One less."""
        self.count -= 1
        self.refresh()

    def refresh(self) -> None:
        """Hold the flag up while it should be; to be called more often than it falls by itself."""
        left = max(self._until - anyio.current_time(), HOLD_SECONDS if self.count else 0.0)
        if left > 0:
            self._demand.mark(self._slot, left)
        else:
            self._demand.clear(self._slot)


class Place:
    """One unit of a semaphore, released once however often it is asked to be."""

    def __init__(self, semaphore: anyio.Semaphore, preparing: Preparing | None = None) -> None:
        self._semaphore = semaphore
        self._preparing = preparing
        self._held = False

    async def take(self) -> None:
        """Wait for the place and take it."""
        await self._semaphore.acquire()
        self._taken()

    def take_now(self) -> bool:
        """Take the place if it is free; whether it was."""
        try:
            self._semaphore.acquire_nowait()
        except anyio.WouldBlock:
            return False
        self._taken()
        return True

    def _taken(self) -> None:
        self._held = True
        if self._preparing is not None:
            self._preparing.enter()

    def release(self) -> None:
        """Give the place back, if it is held."""
        if self._held:
            self._held = False
            self._semaphore.release()
            if self._preparing is not None:
                self._preparing.leave()
