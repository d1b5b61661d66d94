"""The mounter as other processes see it. Blocking; from async code: `to_thread.run_sync(mounter.status)`."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from multiprocessing.connection import Connection
from typing import Final, TypeVar

import msgspec

from mounter.control import (
    LINE_LIMIT,
    Configure,
    Connect,
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
    encode,
    short_socket_path,
)
from mounter.daemon import READY
from mounter.errors import MounterRefused, MounterUnreachable
from mounter.forks import pipe, start_alone
from mounter.logfile import last_line
from mounter.probe import Mode
from mounter.settings import MounterSettings

_START_SECONDS: Final = 30.0
_ANSWER_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.02
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

R = TypeVar("R", bound=Reply)


class Mounter:
    """The mounter of one root. Each call makes a connection of its own, so a restarted mounter is met again.

    Every method raises MounterUnreachable, and MounterRefused.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def status(self) -> Status:
        """Who and how it is."""
        return self._ask(StatusRequest(), Status)

    def configure(self, settings: MounterSettings) -> None:
        """Give it new settings; they hold for what begins from now on."""
        self._ask(Configure(settings), Done)

    def warm(self, layers: list[str]) -> None:
        """Have it load these layers' trees in the background: the first miss need not wait for that."""
        self._ask(Warm(layers), Done)

    def connect(self, layer: str) -> None:
        """Have it connect to where this layer comes from, in the background: the first miss need not wait."""
        self._ask(Connect(layer), Done)

    def retire(self) -> None:
        """Have it give up mount point and socket, and end when the last mount that uses the gate is gone.

        Another mounter may be started as soon as this returns.
        """
        self._ask(Retire(), Done)

    def stop(self) -> None:
        """End it now. What runs on lazy layers keeps only the files that are here."""
        self._ask(Stop(), Done)

    def dismiss(self) -> None:
        """As `retire`, of a mounter of any version: by SIGTERM, whatever protocol it speaks."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        dismissed = 0
        while time.monotonic() < deadline:
            try:
                pid = self.pid()
            except OSError:
                return  # its socket is gone, so it has let go of everything before that
            if pid != dismissed:
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    return
                except OSError as error:
                    raise MounterRefused(f"the mounter of {self.root} (pid {pid}): {error}") from error
                dismissed = pid
            time.sleep(_LOOK_SECONDS)
        raise MounterRefused(
            f"the mounter of {self.root} (pid {dismissed}) did not retire in {_ANSWER_SECONDS:g} s"
        )

    def pid(self) -> int:
        """The process that listens on the socket, of whatever version. Raises OSError if none does."""
        with (
            short_socket_path(self.root) as path,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        ):
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(credentials)[0]
        if pid == 0:
            raise MounterRefused(f"the mounter of {self.root} runs in another process namespace")
        return pid

    def _ask(self, request: Request, expected: type[R]) -> R:
        try:
            with (
                short_socket_path(self.root) as path,
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            ):
                connection.settimeout(_ANSWER_SECONDS)
                connection.connect(path)
                connection.sendall(encode(request))
                with connection.makefile("rb") as lines:
                    line = lines.readline(LINE_LIMIT)
        except OSError as error:
            raise MounterUnreachable(f"no mounter answers for {self.root}: {error}") from error
        if not line:
            raise MounterUnreachable(f"the mounter of {self.root} ended before it answered")
        try:
            reply = decode_reply(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MounterRefused(f"the mounter of {self.root} speaks another protocol: {error}") from error
        if isinstance(reply, Failed):
            raise MounterRefused(reply.message)
        if not isinstance(reply, expected):
            raise MounterRefused(f"the mounter of {self.root} answered {type(reply).__name__}")
        return reply


def connect(root: str) -> Mounter:
    """The running mounter of `root`. Raises MounterUnreachable."""
    found = Mounter(root)
    found.status()
    return found


def start_mounter(root: str, settings: MounterSettings, mode: Mode) -> Mounter:
    """Start a mounter for `root` and return when its gate is mounted and its socket answers.

    It runs in a session of its own, is nobody's child, and outlives whoever started it. Raises
    MounterRefused with what it said if it does not come up: another one runs already, say.
    """
    root = os.path.abspath(root)
    ours, theirs = pipe()
    with ours:
        with theirs:
            start_alone(f"mounter {root}", _run, root, mode, settings, theirs)
        if not ours.poll(_START_SECONDS):
            raise MounterRefused(f"the mounter of {root} did not come up in {_START_SECONDS:g} s")
        try:
            said = ours.recv_bytes().decode()
        except EOFError:
            said = last_line(os.path.join(root, "mounter.log"))
    if said != READY:
        raise MounterRefused(f"the mounter of {root} did not come up: {said}")
    return connect(root)


def _run(root: str, mode: Mode, settings: MounterSettings, starter: Connection) -> None:
    from mounter.process import run_and_report  # in the new process, as it loads libfuse

    run_and_report(root, mode, settings, starter)
