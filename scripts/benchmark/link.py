"""A link of known rate and round trip time to a network namespace, on kernels with and without netem."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from scripts.benchmark.host import compiled
from tests.integration.harness import CommandFailed, call
from tests.integration.processes import Daemon

_NAMESPACE: Final = "registry"
_NEAR: Final = "bench0"
_FAR: Final = "bench1"
_NEAR_ADDRESS: Final = "10.77.0.1"
FAR_ADDRESS: Final = "10.77.0.2"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Profile:
    """Of a link: rate in bit/s each way (0: none), round trip time in seconds, queue in bytes."""

    name: str
    rate: int
    round_trip: float
    queue: int

    def __str__(self) -> str:
        return f"{self.rate / 1e6:.0f} Mbit/s, {self.round_trip * 1000:.0f} ms"


PROFILES: Final = {
    profile.name: profile
    for profile in (
        Profile("1g", 1_000_000_000, 0.002, 1_000_000),
        Profile("100m", 100_000_000, 0.020, 500_000),
    )
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A link as one plain HTTP transfer sees it."""

    mbit_per_second: float
    round_trip_ms: float


class Link:
    """The link while it is up; a context manager. Its near end is in this process's namespace."""

    def __init__(self, profile: Profile, work: str) -> None:
        self.profile = profile
        delay = str(round(profile.round_trip / 2 * 1e6))
        arguments = [_NAMESPACE, _NEAR, _FAR, str(profile.rate), delay, str(profile.queue)]
        self._log = os.path.join(work, "delaylink.log")
        self._daemon = Daemon([compiled("delaylink", work), *arguments], log=self._log)

    def __enter__(self) -> Self:
        call(["ip", "link", "set", "lo", "up"])
        call(["ip", "netns", "add", _NAMESPACE])
        self._daemon.__enter__()
        try:
            self._daemon.wait_until(lambda: "up" in self._daemon.log_end())
            call(["ip", "addr", "add", f"{_NEAR_ADDRESS}/24", "dev", _NEAR])
            call(["ip", "link", "set", _NEAR, "up"])
            for step in (["addr", "add", f"{FAR_ADDRESS}/24", "dev", _FAR], ["link", "set", _FAR, "up"]):
                call(["ip", "-n", _NAMESPACE, *step])
            call(["ip", "-n", _NAMESPACE, "link", "set", "lo", "up"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._daemon.__exit__()
        call(["ip", "netns", "delete", _NAMESPACE])

    def beyond(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` at the far end."""
        return ["ip", "netns", "exec", _NAMESPACE, *command]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing passes either way meanwhile, and nobody is told."""
        os.kill(self._daemon.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._daemon.pid, signal.SIGCONT)

    @property
    def received(self) -> int:
        """Bytes that have come over the link so far, all headers included."""
        with open("/proc/self/net/dev", encoding="ascii") as file:
            found = re.search(rf"^\s*{_NEAR}:\s*(\d+)", file.read(), re.MULTILINE)
        assert found, f"{_NEAR} is not there"
        return int(found[1])

    def measure(self, url: str) -> Measured:
        """Fetch `url` from the far end, once to warm up and once for the clock."""
        parts = urlsplit(url)
        round_trip = min(_connect(parts.hostname or "", parts.port or 80) for _ in range(5))
        for _ in range(2):
            begin = time.perf_counter()
            size = _fetch(parts.netloc, parts.path)
            seconds = time.perf_counter() - begin
        return Measured(round(size * 8 / 1e6 / seconds, 1), round(round_trip * 1000, 2))


def _connect(host: str, port: int) -> float:
    begin = time.perf_counter()
    socket.create_connection((host, port)).close()
    return time.perf_counter() - begin


def _fetch(host: str, path: str) -> int:
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200:
            raise CommandFailed(["GET", path], response.status, response.reason)
        size = 0
        while block := response.read(_BLOCK):
            size += len(block)
        return size
    finally:
        connection.close()
