"""A second process for a large layer: it streams the second half of what is missing.

Writing a file costs more processor time than fetching it, so one process streams slower than a fast link, and
threads would wait for each other. What the second one does not bring, the first brings after it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import anyio

from fetcher.errors import FetchError
from fetcher.logs import get_logger
from fetcher.nodes import Member
from fetcher.progress import Field, Progress
from mounter.forks import Child, set_title

log = get_logger("layergate.worker")

_LEAST_COST: Final = 24 << 20
"""A quarter of a second of work; below that it is not worth the memory."""
_FILE_COST: Final = 6 << 10
"""Compressed bytes that take as long to inflate, verify and write (10 ns each) as making one file does."""
_COUNTED: Final = (Field.BYTES_DONE, Field.FILES_DONE, Field.FETCHED_BACKGROUND, Field.REQUESTS)
_LISTEN_SECONDS: Final = 0.25


def middle(members: Sequence[Member]) -> int | None:
    """The byte of the blob where to divide what is missing for two processes; None if one will do. Pure."""
    costs = [member.end - member.offset + _FILE_COST * len(member.pieces) for member in members]
    left = sum(costs)
    if left < _LEAST_COST or (os.cpu_count() or 1) < 2:
        return None
    half = left / 2
    for member, cost in zip(members, costs, strict=True):
        left -= cost
        if left <= half:
            return member.end
    return None


class SecondHalf:
    """`stream` in a process forked off this one, which has the tree. Close it in any case.

    `stream` gets counters to write its progress to; `count` takes them over.
    """

    def __init__(self, layer: str, stream: Callable[[Progress], Awaitable[None]]) -> None:
        """Fork; while no event loop and no thread is here. Raises OSError."""
        self._theirs = Progress()
        self._taken = dict.fromkeys(_COUNTED, 0)
        self._child = Child(partial(_stream_in_child, layer, stream, self._theirs))
        self._end = os.pidfd_open(self._child.pid)

    def count(self, progress: Progress) -> None:
        """Add to `progress` what the other process has done since the last call."""
        for field, taken in self._taken.items():
            now = self._theirs[field]
            progress.add(field, now - taken)
            self._taken[field] = now

    async def ended(self, listen: Callable[[], None]) -> bool:
        """Wait for its end, calling `listen` meanwhile; whether all of its half is here."""
        while True:
            with anyio.move_on_after(_LISTEN_SECONDS):
                await anyio.wait_readable(self._end)
                break
            listen()
        return self._child.wait() == 0

    def close(self) -> None:
        """End it if it is still at work."""
        os.close(self._end)
        self._child.close()


def _stream_in_child(layer: str, stream: Callable[[Progress], Awaitable[None]], counters: Progress) -> int:
    set_title(f"worker {layer}, second half")
    try:
        anyio.run(stream, counters)
    except (FetchError, OSError) as error:
        # Whoever forked us meets the same, if it has not passed by then, and reports it.
        log.info("second_half_failed", error=str(error))
        return 1
    except Exception:
        log.exception("second_half_failed")
        return 1
    return 0
