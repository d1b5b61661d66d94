from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from fetcher.window import ReceiveWindow

_MOST = 1 << 20
_LEAST = 128 << 10


class Link:
    """A connection, and the time; an eighth of a second passes with each block."""

    def __init__(self, *, round_trip: float | None) -> None:
        self.now = 0.0
        self.size = _MOST
        self.changes = 0
        self._told = 0xFFFFFFFF if round_trip is None else int(round_trip * 1e6)

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            return struct.pack("i", 2 * self.size)
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return (bytes(148) + struct.pack("=I", self._told))[:size]

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.size = value
        self.changes += 1

    def window(self) -> ReceiveWindow:
        return ReceiveWindow(self, _MOST, clock=lambda: self.now)

    def bring(self, window: ReceiveWindow, rate: float, *, seconds: float = 0.125) -> None:
        self.now += seconds
        window.arrived(int(rate * seconds))


def test_a_slow_link_gets_one_and_a_half_round_trips() -> None:
    link = Link(round_trip=0.05)
    link.bring(link.window(), 8e6)
    assert link.size == pytest.approx(8e6 * 0.075, rel=0.01)


def test_with_a_short_round_trip_40_ms_are_under_way() -> None:
    link = Link(round_trip=0.001)
    link.bring(link.window(), 12e6)
    assert link.size == pytest.approx(12e6 * 0.04, rel=0.01)


def test_it_stays_between_its_bounds() -> None:
    link = Link(round_trip=0.05)
    window = link.window()
    link.bring(window, 1000)
    assert link.size == _LEAST
    link.bring(window, 1e9)
    assert link.size == _MOST


def test_a_window_that_holds_the_stream_back_grows_to_what_the_link_takes() -> None:
    link = Link(round_trip=0.1)
    window = link.window()
    link.bring(window, 1e4)
    assert link.size == _LEAST
    for _ in range(20):
        link.bring(window, min(8e6, link.size / 0.1))
    assert link.size == pytest.approx(min(_MOST, 8e6 * 0.15), rel=0.13)


def test_a_steady_link_is_not_set_again() -> None:
    link = Link(round_trip=0.02)
    window = link.window()
    for _ in range(10):
        link.bring(window, 12e6)
    assert link.changes == 1


def test_the_next_answer_on_a_connection_goes_on_from_there() -> None:
    link = Link(round_trip=0.02)
    link.bring(link.window(), 1000)
    assert link.size == _LEAST
    link.bring(link.window(), 1e9)
    assert link.size == _MOST


def test_a_pause_tells_nothing() -> None:
    link = Link(round_trip=0.02)
    window = link.window()
    link.bring(window, 1e6, seconds=0.5)
    assert link.size == _MOST
    link.bring(window, 12e6)
    assert link.size == pytest.approx(12e6 * 0.04, rel=0.01)


def test_without_a_round_trip_nothing_is_changed() -> None:
    link = Link(round_trip=None)
    link.bring(link.window(), 1e6)
    assert link.changes == 0


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0],
    ):
        yield client


def test_a_real_connection_is_set(connection: socket.socket) -> None:
    link = Link(round_trip=None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MOST)
    link.bring(ReceiveWindow(connection, _MOST, clock=lambda: link.now), 12e6)
    # 40 ms of it, as loopback's round trip is shorter; socket(7): the kernel doubles it
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 480_000


def test_a_connection_that_has_ended_is_left_to_the_next_read(connection: socket.socket) -> None:
    link = Link(round_trip=None)
    window = ReceiveWindow(connection, _MOST, clock=lambda: link.now)
    connection.close()
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}"):
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    link.bring(window, 12e6)
