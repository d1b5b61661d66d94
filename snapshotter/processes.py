"""Processes, told from others that have their number later."""

from __future__ import annotations

import os

import msgspec


class Process(msgspec.Struct, frozen=True):
    """A process for all time: `start_time` is in clock ticks since boot, as /proc has it."""

    pid: int
    start_time: int

    @classmethod
    def current(cls) -> Process:
        """This one."""
        return cls(os.getpid(), _start_time(os.getpid()))

    def runs(self) -> bool:
        """Whether it has not ended."""
        try:
            return _start_time(self.pid) == self.start_time
        except (FileNotFoundError, ProcessLookupError):
            return False


def _start_time(pid: int) -> int:
    """Raises FileNotFoundError, ProcessLookupError; a process that only waits to be reaped has ended."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[19])
