"""Daemons that a test starts, and what is left of them: processes and mounts.

A daemon is started with a mark in its environment, which its descendants inherit, so
that whatever it has started can be found and ended, children in sessions of their
own too, and nothing else. Blocking; one thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self
from uuid import uuid4

REPOSITORY: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The checkout's root."""

_MARK = "LAYERGATE_HARNESS"
_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_libc = ctypes.CDLL(None, use_errno=True)


class NotReady(Exception):
    """A daemon ended or did not become ready; the message has the end of its log."""


class Daemon:
    """A program in the background, its output in a log file. On exit it ends, and its descendants with it."""

    def __init__(self, command: Sequence[str], *, log: str) -> None:
        self.command = list(command)
        self.log = log
        self._mark = f"{_MARK}={uuid4()}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self.end_descendants()

    @property
    def pid(self) -> int:
        """The process's id; an error where it does not run."""
        assert self._process is not None, f"{self.command[0]} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the program itself runs, whatever its descendants do."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the program, again if it was stopped; its log is continued."""
        assert not self.running, f"{self.command[0]} runs already"
        name, _, value = self._mark.partition("=")
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {name: value},
                cwd=REPOSITORY,
                start_new_session=True,
            )

    def stop(self, *, patience: float = 10) -> None:
        """SIGTERM, and SIGKILL after `patience` seconds; descendants are left alone."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill9(self) -> None:
        """SIGKILL to the program alone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def kill9_all(self) -> None:
        """SIGKILL to the program and all its descendants; returns when they have ended."""
        self.kill9()
        self.end_descendants()

    def descendants(self) -> list[int]:
        """The ids of all running processes that came from this daemon, the daemon not among them.

        Children of a descendant count, too, where a container was started with an environment of its own.
        """
        own = self._process.pid if self._process is not None else 0
        parents: dict[int, int] = {}
        marked = set()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                state, parent = _state_and_parent(int(entry))
                with open(f"/proc/{entry}/environ", "rb") as file:
                    environment = file.read()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if state == "Z":
                continue
            parents[int(entry)] = parent
            if self._mark.encode() in environment.split(b"\0"):
                marked.add(int(entry))
        found: set[int] = marked
        while True:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            if not more:
                return sorted(found - {own})
            found |= more

    def wait_for_descendants(self, *, patience: float) -> None:
        """Give them so many seconds to end by themselves."""
        deadline = time.monotonic() + patience
        while self.descendants() and time.monotonic() < deadline:
            time.sleep(0.02)

    def end_descendants(self, *, patience: float = 10) -> None:
        """SIGKILL to all descendants, until none is left."""
        deadline = time.monotonic() + patience
        while (left := self.descendants()) and time.monotonic() < deadline:
            for pid in left:
                send(pid, signal.SIGKILL)
            time.sleep(0.05)
        assert not left, f"processes {left} of {self.command[0]} cannot be ended"

    def wait_until(self, ready: Callable[[], bool], *, patience: float = 30) -> None:
        """Return once `ready()` is true; raises NotReady if the program ends or `patience` seconds pass."""
        deadline = time.monotonic() + patience
        while not ready():
            if not self.running:
                raise NotReady(f"{self.command[0]} has ended; its log ends with:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise NotReady(f"{self.command[0]} is not ready; its log ends with:\n{self.log_end()}")
            time.sleep(0.02)

    def log_end(self, size: int = 4000) -> str:
        """The last `size` bytes of the log."""
        with open(self.log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode(errors="replace")


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this checkout."""
    return [sys.executable, "-m", module, *arguments]


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def is_running(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for yet has."""
    try:
        return _state_and_parent(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _state_and_parent(pid: int) -> tuple[str, int]:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        state, parent, *_ = file.read().rpartition(")")[2].split()
    return state, int(parent)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo."""

    target: str
    type: str
    source: str
    options: str
    """The file system's own options, an overlay's lowerdir among them."""


def mounts(below: str = "/") -> list[Mount]:
    """The mounts at or below the directory `below`, in the order in which they were made."""
    directory = os.path.realpath(below).rstrip("/")
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            place, _, kind = line.rstrip("\n").partition(" - ")
            target = _unescaped(place.split(" ")[4])
            if target == directory or target.startswith(directory + "/"):
                file_system, source, options = kind.split(" ", 2)
                found.append(Mount(target, file_system, _unescaped(source), _unescaped(options)))
    return found


def unmount_below(directory: str) -> None:
    """Unmount everything at or below `directory`, the last mount first; what is busy is detached."""
    for mount in reversed(mounts(directory)):
        if _libc.umount2(os.fsencode(mount.target), _UMOUNT_NOFOLLOW | _MNT_DETACH):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), mount.target)


def _unescaped(text: str) -> str:
    r"""mountinfo writes blanks and backslashes as \040 and the like."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
