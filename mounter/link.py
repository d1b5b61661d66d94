"""How fast the link to the registry is, judged by what came over it. Pure; times come from the caller."""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.3
_SAMPLE: Final = 256 << 10
"""Bytes that a judgement of the bandwidth takes at least."""
_SPAN: Final = 0.25
"""Seconds that one spans, unless the request ends before."""


class LinkEstimate:
    """Smoothed bandwidth (bytes a second, of one request) and time to the first byte (seconds)."""

    __slots__ = ("_bandwidth_seen", "_round_trip_seen", "bandwidth", "round_trip")

    def __init__(self, *, bandwidth: float, round_trip: float) -> None:
        self.bandwidth = bandwidth
        self.round_trip = round_trip
        self._bandwidth_seen = False
        self._round_trip_seen = False

    def first_byte(self, seconds: float) -> None:
        """A request's first block came after `seconds`."""
        self.round_trip = _smoothed(self.round_trip, seconds) if self._round_trip_seen else seconds
        self._round_trip_seen = True

    def body(self, count: int, seconds: float) -> None:
        """`count` bytes came in `seconds`."""
        rate = count / max(seconds, 1e-6)
        self.bandwidth = _smoothed(self.bandwidth, rate) if self._bandwidth_seen else rate
        self._bandwidth_seen = True


class RequestTimer:
    """Feeds the blocks of one request, sent at `now`, into an estimate. Times are monotonic seconds.

    A judgement spans some time, because blocks come in bursts after whoever reads them was busy.
    """

    __slots__ = ("_count", "_estimate", "_first", "_last", "_since")

    def __init__(self, estimate: LinkEstimate, now: float) -> None:
        self._estimate = estimate
        self._first = True
        self._since = self._last = now
        self._count = 0

    def block(self, count: int, now: float) -> None:
        """A block of `count` bytes came at the time `now`."""
        self._last = now
        if self._first:
            # What came with the first byte was sent while we waited for that: no measure of the bandwidth.
            self._first = False
            self._estimate.first_byte(now - self._since)
            self._since = now
            return
        self._count += count
        if now - self._since >= _SPAN:
            self.end()

    def end(self) -> None:
        """No more blocks, or time for a judgement."""
        if self._count >= _SAMPLE:
            self._estimate.body(self._count, self._last - self._since)
            self._since = self._last
            self._count = 0


def _smoothed(old: float, new: float) -> float:
    return old + _WEIGHT * (new - old)
