"""The control protocol, both ends of it, without a mounter."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest

from mounter.client import Mounter, connect
from mounter.control import (
    Configure,
    Done,
    Failed,
    Reply,
    Request,
    Retire,
    Status,
    StatusRequest,
    Stop,
    Warm,
    decode_reply,
    decode_request,
    encode,
    short_socket_path,
    socket_path,
)
from mounter.counters import Counters, Latency
from mounter.errors import MounterRefused, MounterUnreachable
from mounter.logfile import last_line
from mounter.settings import MounterSettings

STATUS = Status(
    protocol=1,
    pid=42,
    version="1.0",
    generation="abc",
    mode="gate",
    resident_bytes=1,
    in_flight=0,
    open_files=0,
    loaded_layers=0,
    partial_files=0,
    late_links=0,
    bandwidth=1.5,
    round_trip=0.1,
    counters=Counters(lookups_file=3),
    latency=Latency(count=1, sum=0.5, max=0.5, p50=0.5, p99=0.5),
)


@contextmanager
def answering(root: str, answer: bytes) -> Iterator[list[bytes]]:
    """A socket that takes one line and says `answer`; what it was told."""
    heard: list[bytes] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        with short_socket_path(root) as path:
            listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                heard.append(lines.readline())
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            thread.join()


@pytest.mark.parametrize(
    "request_",
    [
        StatusRequest(),
        Configure(MounterSettings(wait_seconds=3, read_ahead=5)),
        Warm(["a", "b"]),
        Retire(),
        Stop(),
    ],
    ids=lambda request: type(request).__name__,
)
def test_requests_survive_the_wire(request_: Request) -> None:
    line = encode(request_)
    assert line.count(b"\n") == 1
    assert decode_request(line) == request_


@pytest.mark.parametrize(
    "reply", [STATUS, Done(), Failed("why\nnot")], ids=lambda reply: type(reply).__name__
)
def test_replies_survive_the_wire(reply: Reply) -> None:
    line = encode(reply)
    assert line.count(b"\n") == 1
    assert decode_reply(line) == reply


@pytest.mark.parametrize("line", [b"{}", b"", b"no json", b'{"type": "dance"}', b'{"type": "configure"}'])
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_request(line)


@pytest.mark.parametrize(
    "settings",
    ['{"wait_seconds": 0}', '{"concurrent_requests": -1}', '{"waitseconds": 5}', '{"log_limit": 1}'],
)
def test_settings_are_checked(settings: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(settings, type=MounterSettings)


def test_a_client_asks_and_is_answered(tmp_path: Path) -> None:
    with answering(str(tmp_path), encode(STATUS)) as heard:
        assert Mounter(str(tmp_path)).status() == STATUS
    assert heard == [encode(StatusRequest())]
    assert os.path.exists(socket_path(str(tmp_path)))


def test_a_root_may_be_longer_than_a_socket_address(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 40)
    root.mkdir()
    with answering(str(root), encode(Done())):
        Mounter(str(root)).retire()


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(MounterUnreachable, match="no mounter answers"):
        connect(str(tmp_path))
    with pytest.raises(MounterUnreachable, match="no mounter answers"):
        connect(str(tmp_path / "absent"))


def test_a_mounter_that_ends_in_between_is_unreachable(tmp_path: Path) -> None:
    with answering(str(tmp_path), b""), pytest.raises(MounterUnreachable, match="ended"):
        Mounter(str(tmp_path)).stop()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (encode(Failed("no such layer")), "no such layer"),
        (b'{"type": "novelty"}\n', "another protocol"),
        (encode(STATUS), "answered Status"),
    ],
)
def test_refusals_say_why(tmp_path: Path, answer: bytes, said: str) -> None:
    with answering(str(tmp_path), answer), pytest.raises(MounterRefused, match=said):
        Mounter(str(tmp_path)).warm(["a"])


def test_the_last_line_of_a_log(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    assert last_line(path) == ""
    (tmp_path / "log").write_text("x" * 9000 + "\nfirst\nlast\n")
    assert last_line(path) == "last"
