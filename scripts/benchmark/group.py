"""CPU time and memory of processes and whatever they start: a control group each."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Self

_V1: Final = "/sys/fs/cgroup/cpuacct"
_V2: Final = "/sys/fs/cgroup"
_PARENT: Final = "layergate-bench"
_SAMPLE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """Of all processes of a group together, MiB. Shared pages count once in PSS, once a process in RSS."""

    pss: float
    rss: float
    processes: int


class Group:
    """A control group; a context manager. Processes in it have to have ended when it ends."""

    def __init__(self, name: str) -> None:
        self._v1 = os.path.isdir(_V1)
        self._parent = os.path.join(_V1 if self._v1 else _V2, _PARENT)
        self._path = os.path.join(self._parent, name)

    def __enter__(self) -> Self:
        os.makedirs(self._path, exist_ok=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        for path in (self._path, self._parent):
            with contextlib.suppress(OSError):  # others are in the parent; an empty group harms nobody
                os.rmdir(path)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This process is in the group meanwhile: what it starts stays there."""
        home = self._home()
        self._enter(self._path)
        try:
            yield
        finally:
            self._enter(home)

    def _home(self) -> str:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if ("cpuacct" in controllers.split(",")) if self._v1 else not controllers:
                    return (_V1 if self._v1 else _V2) + path
        raise LookupError("this process is in no control group")

    def _enter(self, path: str) -> None:
        with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as file:
            file.write("0")  # 0 is the writer

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all that is and was in the group."""
        if self._v1:
            with open(os.path.join(self._path, "cpuacct.usage"), encoding="ascii") as file:
                return int(file.read()) / 1e9
        with open(os.path.join(self._path, "cpu.stat"), encoding="ascii") as file:
            values = dict(line.split() for line in file)
        return int(values["usage_usec"]) / 1e6

    def memory(self) -> Memory:
        """Of the processes that run now, but for this one, which enters to start others."""
        with open(os.path.join(self._path, "cgroup.procs"), encoding="ascii") as file:
            pids = [pid for pid in file.read().split() if pid != str(os.getpid())]
        found = [memory for pid in pids if (memory := _memory(pid)) is not None]
        return Memory(
            pss=round(sum(pss for pss, _ in found) / 1024, 1),
            rss=round(sum(rss for _, rss in found) / 1024, 1),
            processes=len(found),
        )

    @contextlib.contextmanager
    def peak_memory(self) -> Iterator[list[Memory]]:
        """Samples memory ten times a second; the list has the sample of the highest PSS at its end."""
        peak: list[Memory] = []
        stop = threading.Event()

        def watch() -> None:
            while True:
                sample = self.memory()
                if not peak or sample.pss > peak[0].pss:
                    peak[:] = [sample]
                if stop.wait(_SAMPLE_SECONDS):
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield peak
        finally:
            stop.set()
            thread.join()


def _memory(pid: str) -> tuple[int, int] | None:
    """PSS and RSS in KiB; None for a process that has ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            values = dict(line.split()[:2] for line in file.readlines()[1:])
    except OSError:
        return None
    return (int(values["Pss:"]), int(values["Rss:"])) if values else None
