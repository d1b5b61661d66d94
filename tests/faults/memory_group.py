"""A control group whose memory can be limited, of either version of control groups."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Self
from uuid import uuid4

_V1: Final = "/sys/fs/cgroup/memory"
_V2: Final = "/sys/fs/cgroup"
_LOOK_SECONDS: Final = 0.02


class MemoryGroup:
    """A context manager; the processes in it have to have ended when it ends."""

    def __init__(self) -> None:
        self._squeezing: threading.Thread | None = None
        self._released = threading.Event()
        self._v1 = os.path.isdir(_V1)
        self._limit = "memory.limit_in_bytes" if self._v1 else "memory.max"
        self._path = f"{_V1 if self._v1 else _V2}/layergate-faults-{uuid4()}"

    def __enter__(self) -> Self:
        os.mkdir(self._path)
        if not os.path.exists(f"{self._path}/{self._limit}"):
            with open(f"{_V2}/cgroup.subtree_control", "w", encoding="ascii") as file:
                file.write("+memory")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()
        deadline = time.monotonic() + 10
        while True:
            try:
                os.rmdir(self._path)
                return
            except OSError:  # the last of them is still ending
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def entered(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in the group."""
        return ["sh", "-c", f'echo 0 >{self._path}/cgroup.procs && exec "$@"', "sh", *command]

    def limit(self, count: int) -> None:
        """Allow `count` bytes."""
        self._write(self._limit, str(count))

    def squeeze(self) -> None:
        """Allow no more than there is at any moment, until `release`: what needs more is killed."""
        self._released.clear()
        self._squeezing = threading.Thread(target=self._squeeze)
        self._squeezing.start()

    def release(self) -> None:
        """Let it have as much as it likes."""
        self._released.set()
        if self._squeezing is not None:
            self._squeezing.join()
            self._squeezing = None
        self._write(self._limit, "-1" if self._v1 else "max")

    @property
    def oom_kills(self) -> int:
        """How many processes were killed for want of memory so far."""
        text = self._read("memory.oom_control" if self._v1 else "memory.events")
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def _squeeze(self) -> None:
        while not self._released.wait(_LOOK_SECONDS):
            with suppress(OSError):  # EBUSY: there is more by now
                if self._v1:
                    self._write("memory.force_empty", "0")
                used = self._used()
                if used < self._allowed():
                    self._write(self._limit, str(used))

    def _used(self) -> int:
        return int(self._read("memory.usage_in_bytes" if self._v1 else "memory.current"))

    def _allowed(self) -> float:
        limit = self._read(self._limit)
        return math.inf if limit == "max" else int(limit)

    def _read(self, name: str) -> str:
        with open(f"{self._path}/{name}", encoding="ascii") as file:
            return file.read().strip()

    def _write(self, name: str, value: str) -> None:
        with open(f"{self._path}/{name}", "w", encoding="ascii") as file:
            file.write(value)
