"""What the mounter counts. One writer: its event loop."""

from __future__ import annotations

from typing import Final

import msgspec

_FIRST: Final = 0.0001
_BUCKETS: Final = 40
"""Bucket i counts up to 0.1 ms * 2 ** (i / 2): the last one 52 s, all above it as well."""


class Latency(msgspec.Struct, frozen=True):
    """How long something took, in seconds; the percentiles are exact to a factor of 1.4, rounded up."""

    count: int = 0
    sum: float = 0.0
    max: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


class Histogram:
    """Latencies in logarithmic buckets: constant memory, whatever the number."""

    __slots__ = ("_buckets", "_count", "_max", "_sum")

    def __init__(self) -> None:
        self._buckets = [0] * _BUCKETS
        self._count = 0
        self._sum = 0.0
        self._max = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        bucket = 0
        limit = _FIRST
        while seconds > limit and bucket < _BUCKETS - 1:
            bucket += 1
            limit = _FIRST * 2 ** (bucket / 2)
        self._buckets[bucket] += 1
        self._count += 1
        self._sum += seconds
        self._max = max(self._max, seconds)

    def snapshot(self) -> Latency:
        """The figures so far."""
        return Latency(self._count, self._sum, self._max, self._percentile(0.5), self._percentile(0.99))

    def _percentile(self, share: float) -> float:
        below = 0
        for bucket, count in enumerate(self._buckets):
            below += count
            if below and below >= share * self._count:
                return min(self._max, _FIRST * 2 ** (bucket / 2))
        return 0.0


class Counters(msgspec.Struct):
    """Since the mounter's start.

    Lookups are FUSE requests by what they asked for: a directory, a file that the layer has, or neither
    (`lookups_absent`). `fetches` are files that an open or a read waited for; a fetch that failed, or took
    longer than its waiter would wait, is in `fetch_failures` too. `streamed` are files that the
    background stream, or the request for another one, was about to bring, so that nothing was asked for;
    `neighbours` are files that came with such a request though nobody had missed them yet.
    """

    lookups_directory: int = 0
    lookups_file: int = 0
    lookups_absent: int = 0
    opens: int = 0
    reads: int = 0
    read_bytes: int = 0
    handed_over: int = 0
    served: int = 0
    fetches: int = 0
    fetch_failures: int = 0
    fetched_bytes: int = 0
    requests: int = 0
    streamed: int = 0
    neighbours: int = 0
