"""Waiting for a layer's own stream, where that brings a file as well as a request would. No requests in it.

The stream is another process's: all that is known of it are the layer's counters. So each wait has an end
that does not rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import anyio

from fetcher.nodes import Node
from fetcher.progress import Field, Progress
from mounter.link import LinkEstimate
from mounter.loaded import LoadedLayer

_PREFETCH_PATIENCE: Final = 16.0
"""How many times as long as a file of the prefetch range takes by itself it may be on its way in that."""
_LONGEST_PREFETCH_SECONDS: Final = 60.0
"""And how long that may take. Read in parts meanwhile, it would come later, and all else after it."""
_POLL_SECONDS: Final = 0.005
_SLACK_SECONDS: Final = 0.05
_STALLED_SECONDS: Final = 1.0
"""A stream that brings nothing for so long is not relied on."""


class Streams:
    """The streams of all layers; `in_flight` says how many requests of the mounter's own are under way."""

    def __init__(self, link: LinkEstimate, in_flight: Callable[[], int]) -> None:
        self._link = link
        self._in_flight = in_flight

    async def prefetched_large(self, loaded: LoadedLayer, node: Node) -> bool:
        """`prefetched` for a file that is read in parts otherwise: it may take longer, or be yet to begin."""
        with anyio.move_on_after(_STALLED_SECONDS):
            while _is_to_begin(loaded.progress, node):  # noqa: ASYNC110 - in another process
                await anyio.sleep(_POLL_SECONDS)
        return await self.prefetched(loaded, node, longest=_LONGEST_PREFETCH_SECONDS)

    async def prefetched(self, loaded: LoadedLayer, node: Node, *, longest: float) -> bool:
        """Wait for a file that the prefetch range will bring within `longest` seconds; whether it did.

        Asked for beside that it would come twice, over a link that has no time to spare: all of the range has
        to come. Bounded by the stream's own progress, as it may die.
        """
        if loaded.progress[Field.STOP] > loaded.progress[Field.PREFETCH_END]:
            return False
        coming = _on_its_way(loaded.progress, node, unmeasured=self._link.bandwidth)
        if coming is None:
            return False
        # Other layers' ranges, which come at the same time, are soon over: the rate of now is too low.
        rate = max(coming.rate, self._link.bandwidth)
        if coming.ahead > min(_PREFETCH_PATIENCE * coming.size, longest * rate):
            return False
        came, moved = -1, anyio.current_time()
        while anyio.current_time() < moved + _STALLED_SECONDS:
            if loaded.plain.has(node):
                return True
            if came != loaded.progress[Field.FETCHED_PREFETCH]:
                came, moved = loaded.progress[Field.FETCHED_PREFETCH], anyio.current_time()
            await anyio.sleep(_POLL_SECONDS)
        return False

    async def about_to_bring(self, loaded: LoadedLayer, node: Node) -> bool:
        """Wait for the layer's own stream if it brings the file about as soon as a request would."""
        coming = _on_its_way(loaded.progress, node)
        if self._in_flight() or coming is None:
            return False
        expected = coming.ahead / coming.rate
        if expected > self._link.round_trip + coming.size / max(self._link.bandwidth, coming.rate):
            return False
        # Bounded, because the stream may have died and left its position behind.
        deadline = anyio.current_time() + 2 * expected + _SLACK_SECONDS
        while not self._in_flight() and anyio.current_time() < deadline:
            await anyio.sleep(_POLL_SECONDS)
            if loaded.plain.has(node):
                return True
        return False


class _OnItsWay(NamedTuple):
    """Of a file that a stream is going to bring: bytes that come until it is here, and of these its own."""

    ahead: int
    size: int
    rate: int
    """Bytes a second."""


def _is_to_begin(progress: Progress, node: Node) -> bool:
    """Whether the file is of a prefetch range whose stream has not begun."""
    begun = progress[Field.STOP] or progress[Field.FETCHED_PREFETCH]
    return not begun and node.chunks[-1].end <= progress[Field.PREFETCH_END]


def _on_its_way(progress: Progress, node: Node, *, unmeasured: float = 0) -> _OnItsWay | None:
    """None if no stream of the layer brings the file. `unmeasured` is the rate of one that has just begun."""
    position, stop, rate = progress[Field.POSITION], progress[Field.STOP], progress[Field.RATE]
    rate = rate or int(unmeasured)
    first, end = node.chunks[0].offset, node.chunks[-1].end
    if not rate or not position < end <= stop:  # what began before the position is being written
        return None
    return _OnItsWay(end - position, end - first, rate)
