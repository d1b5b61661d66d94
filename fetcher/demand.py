"""Foreground work goes first: a flag that every process of ours can see.

ROOT/demand is a mapped file of slots, each the monotonic time until which its
owner has foreground work (u64, nanoseconds). Background streams look at it
between blocks. A deadline, and not a counter, so that an owner which is killed
cannot stop the streams for longer than HOLD.
"""

from __future__ import annotations

import enum
import os
import time
from typing import Final

from fetcher.words import shared_words

HOLD_SECONDS: Final = 1.0
"""How long one mark lasts; refresh it more often than that while work goes on."""

_HOLD = int(HOLD_SECONDS * 1e9)
_SLOTS = 8


class Slot(enum.IntEnum):
    """Who has foreground work; one process owns each of the first two, and all manual mounts share one."""

    ON_DEMAND = 0
    PREFETCH = 1
    MANUAL = 2


class Demand:
    """The flag of one root; safe to open in any number of processes."""

    def __init__(self, root: str) -> None:
        self._deadlines = shared_words(_SLOTS, os.path.join(root, "demand"))

    def mark(self, slot: Slot, seconds: float = HOLD_SECONDS) -> None:
        """Say that `slot` has foreground work for the next `seconds`, at most HOLD_SECONDS."""
        self._deadlines[slot] = time.monotonic_ns() + int(seconds * 1e9)

    def clear(self, slot: Slot) -> None:
        """Say that `slot` has none any more."""
        self._deadlines[slot] = 0

    def left(self) -> float:
        """Seconds after which no foreground work goes on if nobody marks any more; 0 if none goes on now."""
        now = time.monotonic_ns()
        # One that is further off was marked before the machine started anew, and the clock with it.
        ahead = [deadline - now for deadline in self._deadlines if now < deadline <= now + _HOLD]
        return max(ahead, default=0) / 1e9
