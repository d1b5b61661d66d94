"""The containerd of this host: its version, and whether it sees our mounts.

Blocking, at most some seconds; runs an event loop of its own, so not to be called from within one.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import anyio

from snapshotter.containerd.client import connect
from snapshotter.containerd.errors import ContainerdError

SOCKET: Final = "/run/containerd/containerd.sock"
_NAMESPACE: Final = "default"  # any: the version is the same in all
_TIMEOUT: Final = 3.0
_VERSION = re.compile(r"\bv?(\d+\.\d+\S*)")


@dataclass(frozen=True, slots=True)
class Containerd:
    """What was found. `version` None: none; `same_namespace` None: it is not running, or hidden from us."""

    version: str | None
    detail: str
    same_namespace: bool | None


def find_containerd(socket: str = SOCKET, binary: str = "containerd", proc: str = "/proc") -> Containerd:
    """Ask the running containerd, else the binary on PATH."""
    same = _same_namespace(proc)
    version = anyio.run(_ask_socket, socket)
    if version is not None:
        return Containerd(version, f"running, at {socket}", same)
    version = _ask_binary(binary)
    if version is not None:
        return Containerd(version, f"installed, but not running at {socket}", same)
    return Containerd(None, f"neither running at {socket} nor on PATH", same)


async def _ask_socket(socket: str) -> str | None:
    with anyio.move_on_after(_TIMEOUT), suppress(ContainerdError):
        async with connect(socket, _NAMESPACE) as client:
            return await client.version()
    return None


def _ask_binary(binary: str) -> str | None:
    """`containerd --version` prints "containerd <package> <version> <revision>"."""
    try:
        run = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = _VERSION.search(run.stdout)
    return found[1] if found else None


def _same_namespace(proc: str) -> bool | None:
    """Whether the process named containerd has the mount namespace of this one."""
    with suppress(OSError):
        ours = os.readlink(f"{proc}/self/ns/mnt")
        for pid in os.listdir(proc):
            if pid.isdecimal():
                with suppress(OSError), open(f"{proc}/{pid}/comm", "rb") as file:
                    if file.read() == b"containerd\n":
                        return os.readlink(f"{proc}/{pid}/ns/mnt") == ours
    return None
