"""The machine that is measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Final

from tests.integration.harness import call

_SCRIPTS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def compiled(name: str, work: str) -> str:
    """The program made from scripts/NAME.c."""
    program = os.path.join(work, name)
    if not os.path.exists(program):
        source = os.path.join(_SCRIPTS, f"{name}.c")
        call(["gcc", "-O2", "-Wall", "-pthread", "-o", program, source])
    return program


def drop_page_cache() -> None:
    """Write back what is dirty, and forget all cached pages, dentries and inodes."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def busy_share(seconds: float) -> float:
    """How much of all cores was busy in the `seconds` that this takes, 0 to 1."""
    cores = Cores()
    time.sleep(seconds)
    return cores.busy_share()


class Cores:
    """All cores, from the moment when this is made."""

    def __init__(self) -> None:
        self._idle, self._total = _jiffies()

    def busy_share(self) -> float:
        """How much of them was busy since then, 0 to 1."""
        idle, total = _jiffies()
        return round(1 - (idle - self._idle) / max(total - self._total, 1), 3)


def _jiffies() -> tuple[int, int]:
    """Idle ones (waiting for a disk is idle), and all, of all cores since the machine began."""
    with open("/proc/stat", encoding="ascii") as file:
        values = [int(word) for word in file.readline().split()[1:9]]
    return values[3] + values[4], sum(values)


@dataclass(frozen=True, slots=True)
class Host:
    """What figures depend on."""

    kernel: str
    processor: str
    cores: int
    memory_mib: int
    containerd: str
    runc: str
    python: str
    unpigz: bool
    """containerd's unpacking is about twice as fast with it."""
    load: float
    """Processes that wanted a core in the last minute before; anything but 0 spoils figures."""


def describe_host() -> Host:
    """This machine."""
    return Host(
        kernel=platform.release(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        containerd=_version("containerd"),
        runc=_version("runc"),
        python=platform.python_version(),
        unpigz=shutil.which("unpigz") is not None,
        load=round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"model name\s*: (.*)", file.read())
    return found[1] if found else platform.machine()


def _version(program: str) -> str:
    output = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+\.\d+\.\d+\S*", output)
    return found[0] if found else output.strip()
