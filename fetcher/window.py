"""How much a stream has under way: enough to fill the link, and little more.

What has been sent and has not come yet stands in the link's queue, before whatever else comes over it: a file
that somebody waits for, above all. On a slow link a fixed buffer that suits a fast one is a tenth of a second
of queue. The kernel's own choice follows a round trip that the queue is part of, and so grows with it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, Protocol

_LEAST: Final = 128 << 10
"""Bytes: the blocks that httpx reads are of 64 KiB."""
_INTERVAL_SECONDS: Final = 0.1
_PAUSE_SECONDS: Final = 2 * _INTERVAL_SECONDS
"""An interval this long was one in which nobody read: it tells nothing."""
_QUEUE_SECONDS: Final = 0.04
"""Half of it, and a stream whose files take longer than they come would wait for the sender at 1 Gbit/s."""
_ROUND_TRIPS: Final = 1.5
"""More than one, or a stream that its window holds back would never get a larger one."""
_STEP: Final = 8
"""Changes of less than one part in so many are noise."""
_INT: Final = struct.Struct("i")
_MIN_RTT: Final = struct.Struct("=148xI")
"""Of struct tcp_info (include/uapi/linux/tcp.h): tcpi_min_rtt, microseconds."""
_UNKNOWN: Final = 0xFFFFFFFF


class Connection(Protocol):
    """Of a socket, what is needed here; asyncio's own wrapper has no more."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """See socket."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """See socket."""


class ReceiveWindow:
    """Fits the receive buffer (SO_RCVBUF) of a connection to what arrives; at most `most` bytes.

    A connection may have had one before, for an answer before this one.
    """

    def __init__(
        self, connection: Connection, most: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connection = connection
        self._most = most
        self._clock = clock
        self._since = clock()
        self._came = 0

    def arrived(self, count: int) -> None:
        """To be called with the size of each block that came."""
        self._came += count
        now = self._clock()
        elapsed = now - self._since
        if elapsed < _INTERVAL_SECONDS:
            return
        if elapsed < _PAUSE_SECONDS:
            with contextlib.suppress(OSError):  # a connection that has ended; the next read tells
                self._fit(self._came / elapsed)
        self._since, self._came = now, 0

    def _fit(self, rate: float) -> None:
        round_trip = self._round_trip()
        if round_trip is None:
            return
        told = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _INT.size)
        current = _INT.unpack(told)[0] // 2  # socket(7): the kernel doubles it
        size = int(rate * max(_QUEUE_SECONDS, _ROUND_TRIPS * round_trip))
        size = max(_LEAST, min(size, self._most))
        if abs(size - current) > current // _STEP:
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _round_trip(self) -> float | None:
        """The shortest one that was seen, seconds: without any queue. None if the kernel does not tell."""
        told = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT.size)
        if len(told) < _MIN_RTT.size:
            return None
        (microseconds,) = _MIN_RTT.unpack(told)
        return None if microseconds == _UNKNOWN else microseconds / 1e6
