"""Which of the node's limits was hit, in words for the operator."""

from __future__ import annotations

import errno
import signal
import time
from typing import Final

from fetcher.logs import Logger

SLOW_SECONDS: Final = 1.0
"""A call that writes up to some megabytes and takes longer waits for the disk."""
_HINTS: Final = {
    errno.EMFILE: "raise LimitNOFILE of layergate's service",
    errno.ENFILE: "raise the node's fs.file-max",
    errno.ENOMEM: "raise the memory limit of layergate's service",
}
_CONTROL_GROUPS: Final = "/sys/fs/cgroup"


def refused(error: OSError) -> str:
    """What the system said, and what to raise where a limit of ours was hit. Pure."""
    hint = _HINTS.get(error.errno or 0)
    said = error.strerror or str(error)
    return f"{said}: {hint}" if hint else said


def oom_kills() -> int:
    """How many processes of our control group the kernel has killed for want of memory.

    0 where that is not told. Of memory.events (cgroup v2) or memory.oom_control (v1).
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            groups = dict(line.rstrip("\n").split(":", 2)[1:] for line in file)
        path = (
            f"{_CONTROL_GROUPS}/memory{groups['memory']}/memory.oom_control"
            if "memory" in groups
            else f"{_CONTROL_GROUPS}{groups['']}/memory.events"
        )
        with open(path, encoding="ascii") as file:
            return int(dict(line.split() for line in file)["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0


def ended(exitcode: int | None, *, oom_kills_before: int) -> str:
    """How a process ended that should not have: by its exit code, negative for a signal."""
    if exitcode == -signal.SIGKILL and oom_kills() > oom_kills_before:
        return f"was killed for want of memory: {_HINTS[errno.ENOMEM]}"
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended without a word (exit code {exitcode})"


class Slowness:
    """Tells of a slow disk, once a minute at most."""

    _PAUSE: Final = 60.0

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._next = 0.0

    def look(self, since: float, directory: str) -> None:
        """A call that began at `since`, of time.monotonic, and wrote in `directory`, has just returned."""
        now = time.monotonic()
        if now - since >= SLOW_SECONDS and now >= self._next:
            self._next = now + self._PAUSE
            self._log.warning("disk_slow", seconds=round(now - since, 1), directory=directory)
