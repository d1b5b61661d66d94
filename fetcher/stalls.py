"""Tells of an event loop that does not come round: what it is at, while it is at it.

A defect of ours, a disk that answers nothing, or a machine without time to spare keeps everybody waiting whom
the loop serves. Whoever looks at the log then should read where.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from typing import Final

import anyio

from fetcher.logs import get_logger

log = get_logger("layergate.stalls")

STALL_SECONDS: Final = 5.0
_FRAMES: Final = 8
"""Innermost calls that are told."""


async def watch_for_stalls(*, seconds: float = STALL_SECONDS) -> None:
    """Tell of each time that this loop does nothing else for so long, until cancelled."""
    watch = _Watch(threading.get_ident(), seconds)
    thread = threading.Thread(target=watch.run, name="stalls", daemon=True)
    thread.start()
    try:
        while True:
            watch.beat = time.monotonic()
            await anyio.sleep(seconds / 5)
    finally:
        watch.over.set()


class _Watch:
    """What the thread knows; `beat` is when the loop came round last, of time.monotonic."""

    def __init__(self, watched: int, seconds: float) -> None:
        self.beat = time.monotonic()
        self.over = threading.Event()
        self._watched = watched
        self._seconds = seconds

    def run(self) -> None:
        told = 0.0
        looked = time.monotonic()
        while not self.over.wait(self._seconds / 5):
            now, beat = time.monotonic(), self.beat
            # A process that was stopped, as a whole, has not stalled.
            stopped = now - looked > self._seconds / 2
            looked = now
            if told and beat != told:
                log.info("stall_over", seconds=round(beat - told, 1))
                told = 0.0
            if not told and not stopped and now - beat > self._seconds:
                told = beat
                log.warning("stalled", seconds=round(now - beat, 1), where=self._where())

    def _where(self) -> str:
        frame = sys._current_frames().get(self._watched)
        calls = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        return " < ".join(
            f"{call.name} ({os.path.basename(call.filename)}:{call.lineno})" for call in reversed(calls)
        )
