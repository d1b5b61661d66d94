"""A control group whose memory can be limited, of either version of control groups."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Self
from uuid import uuid4

_V1: Final = "/sys/fs/cgroup/memory"
_V2: Final = "/sys/fs/cgroup"
_STEP: Final = 1.03


class MemoryGroup:
    """A context manager; the processes in it have to have ended when it ends."""

    def __init__(self) -> None:
        self._v1 = os.path.isdir(_V1)
        self._path = f"{_V1 if self._v1 else _V2}/layergate-faults-{uuid4()}"

    def __enter__(self) -> Self:
        os.mkdir(self._path)
        if not os.path.exists(self._limit):
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

    def squeeze(self) -> None:
        """Allow no more than is used now and cannot be written out: what needs more is killed."""
        limit = self._anonymous()
        while True:
            with suppress(OSError):  # EBUSY: v1 refuses less than there is
                self._write(str(int(limit)))
                return
            limit *= _STEP

    def release(self) -> None:
        """Let it have as much as it likes."""
        self._write("-1" if self._v1 else "max")

    @property
    def _limit(self) -> str:
        return f"{self._path}/{'memory.limit_in_bytes' if self._v1 else 'memory.max'}"

    def _anonymous(self) -> float:
        with open(f"{self._path}/memory.stat", encoding="ascii") as file:
            values = dict(line.split() for line in file)
        return int(values["total_rss" if self._v1 else "anon"])

    def _write(self, value: str) -> None:
        with open(self._limit, "w", encoding="ascii") as file:
            file.write(value)
