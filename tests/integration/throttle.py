"""A slow link: a TCP proxy with a rate that can be changed while it runs, and counters.

It is a process of its own, so that it does not share an interpreter with what it
measures; rate and counters are in a file that both map.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import sys
import threading
import time
from typing import Final, Self

from tests.integration.processes import Daemon, python

_BLOCK: Final = 64 << 10
_RATE, _BYTES, _CONNECTIONS, _PORT = range(4)
"""The fields of the mapped file, 8 bytes each in the machine's order: one store of each is atomic."""


class Throttle:
    """A proxy on a free port of 127.0.0.1 in front of `upstream` ("host:port").

    `rate` bounds what flows from the upstream to all clients together, in bytes per second; 0 is no bound.
    """

    def __init__(self, directory: str, upstream: str, *, rate: int = 0) -> None:
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, "throttle")
        with open(path, "w+b") as file:
            file.truncate(mmap.PAGESIZE)
            self._fields = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        self._fields[_RATE] = rate
        command = python("tests.integration.throttle", path, upstream)
        self._daemon = Daemon(command, log=os.path.join(directory, "throttle.log"))

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        try:
            self._daemon.wait_until(lambda: self._fields[_PORT] != 0)
        except BaseException:
            self._daemon.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._daemon.__exit__()

    @property
    def host(self) -> str:
        """Where clients connect to, "127.0.0.1:port"."""
        return f"127.0.0.1:{self._fields[_PORT]}"

    @property
    def rate(self) -> int:
        """Bytes per second; may be set at any time and takes effect within 50 ms."""
        return self._fields[_RATE]

    @rate.setter
    def rate(self, value: int) -> None:
        self._fields[_RATE] = value

    @property
    def bytes(self) -> int:
        """Bytes sent to clients so far, HTTP headers included."""
        return self._fields[_BYTES]

    @property
    def connections(self) -> int:
        """Connections taken so far."""
        return self._fields[_CONNECTIONS]


class _Link:
    """The shared link: a token bucket that holds at most one block."""

    def __init__(self, fields: memoryview[int]) -> None:
        self._fields = fields
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pass_on(self, size: int) -> None:
        """Wait until `size` bytes have gone through the link, and count them."""
        with self._lock:
            remaining = float(size)
            while remaining > 0:
                rate = self._fields[_RATE]
                now = time.monotonic()
                if not rate:
                    self._free_at = now
                    break
                start = max(self._free_at, now - 0.005)
                # In slices, because the rate may change meanwhile.
                slice_size = min(remaining, rate * 0.05)
                self._free_at = start + slice_size / rate
                remaining -= slice_size
                if self._free_at > now:
                    time.sleep(self._free_at - now)
            self._fields[_BYTES] += size


def _pump(source: socket.socket, sink: socket.socket, link: _Link | None) -> None:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with contextlib.suppress(OSError):  # either end may go away at any time; the other is told below
        while size := source.recv_into(buffer):
            if link is not None:
                link.pass_on(size)
            sink.sendall(view[:size])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _serve(client: socket.socket, upstream: tuple[str, int], link: _Link) -> None:
    with client:
        try:
            server = socket.create_connection(upstream)
        except OSError:
            return
        with server:
            upwards = threading.Thread(target=_pump, args=(client, server, None), daemon=True)
            upwards.start()
            _pump(server, client, link)
            upwards.join()


def main(path: str, upstream: str) -> None:
    """Serve for ever."""
    with open(path, "r+b") as file:
        fields = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    host, _, port = upstream.rpartition(":")
    link = _Link(fields)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fields[_PORT] = listener.getsockname()[1]
        while True:
            client, _ = listener.accept()
            fields[_CONNECTIONS] += 1
            threading.Thread(target=_serve, args=(client, (host, int(port)), link), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
