"""What is spoken on the mounter's control socket, ROOT/mounter.sock.

    request, one line of JSON       {"type": "status"}
    reply, one line of JSON         {"type": "done"} or {"type": "failed", "message": ...} or a status

A connection carries one request after another, as long as the client likes. `PROTOCOL` is part of the
status, and grows with any change that an older side would misread: a mounter outlives upgrades of its
clients.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from mounter.counters import Counters, Latency
from mounter.settings import MounterSettings

PROTOCOL: Final = 1
LINE_LIMIT: Final = 1 << 20
"""Bytes of a request or reply, its newline included."""


class StatusRequest(msgspec.Struct, frozen=True, tag="status"):
    """Who are you, and how are you?"""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Take new settings for everything that begins from now on."""

    settings: MounterSettings


class Warm(msgspec.Struct, frozen=True, tag="warm"):
    """Begin to load these layers' trees, because a mount of them is about to be used."""

    layers: list[str]


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """Have a connection to where this layer comes from, because files of it are about to be missed."""

    layer: str


class Retire(msgspec.Struct, frozen=True, tag="retire"):
    """Give up the mount point and the socket; end when no mount stands on the gate any more."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End now. Files that are not here yet can no longer be opened: for tests and uninstalling."""


Request = StatusRequest | Configure | Warm | Connect | Retire | Stop


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """The running mounter. `generation` is its own, random; `mode` is "gate" or "stub"."""

    protocol: int
    pid: int
    version: str
    generation: str
    mode: str
    resident_bytes: int
    in_flight: int
    """Requests to registries that are under way or queued."""
    open_files: int
    loaded_layers: int
    partial_files: int
    late_links: int
    bandwidth: float
    """Estimate for one request, bytes a second."""
    round_trip: float
    """Estimate of the time to the first byte, in seconds."""
    counters: Counters
    latency: Latency
    """Of fetches that opens waited for."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """It was done."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It was not done; `message` says why."""

    message: str


Reply = Status | Done | Failed

_requests: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_replies: Final[msgspec.json.Decoder[Reply]] = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """A message as its line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises msgspec.DecodeError for what is no request of this protocol."""
    return _requests.decode(line)


def decode_reply(line: bytes) -> Reply:
    """Raises msgspec.DecodeError for what is no reply of this protocol."""
    return _replies.decode(line)


def socket_path(root: str) -> str:
    """Where the socket is."""
    return os.path.join(root, "mounter.sock")


@contextmanager
def short_socket_path(root: str) -> Iterator[str]:
    """The same as a path that fits into a socket address (107 bytes), however long ROOT is; for the block."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/mounter.sock"
    finally:
        os.close(fd)
