"""What the mounter's process asks of its host: to be let alone, and to be let have its way."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator
from typing import Final

from fetcher.logs import get_logger
from mounter.syscalls import detach, mount

log = get_logger("layergate.mounter")

READY: Final = "ready"
"""What a mounter says to its starter once its gate is mounted; anything else says why it is not."""

LOCK: Final = "mounter.lock"
"""Locked by the mounter in charge."""
ALIVE: Final = "mounter.alive"
"""In a root: each of its mounters has a shared flock on it, retired ones too, as long as it lives."""
_FUSE_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_OOM_SCORE: Final = -500


def show_life(root: str) -> int:
    """Hold ROOT/mounter.alive; the descriptor, for the process to keep. Raises OSError."""
    fd = os.open(os.path.join(root, ALIVE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def spare_from_oom() -> None:
    """Ask the kernel to kill others first: this process is small, and containers cannot do without it."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(_OOM_SCORE))
    except OSError as error:
        log.warning("oom_score_not_set", error=str(error))


def allow_many_files() -> None:
    """Each large file that is open takes a descriptor, each waiting request a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def let_many_wait(root: str, gate: str, limit: int) -> None:
    """Raise the kernel's limit of 12 read-ahead requests at a time: slow files would use it up for all."""
    try:
        with _fuse_connections(root) as directory:
            connection = os.path.join(directory, str(os.minor(os.stat(gate).st_dev)))
            for name in ("max_background", "congestion_threshold"):
                with open(os.path.join(connection, name), "w", encoding="ascii") as file:
                    file.write(str(limit))
    except OSError as error:
        log.warning("limit_not_raised", error=str(error))


@contextlib.contextmanager
def _fuse_connections(root: str) -> Iterator[str]:
    """The kernel's directory of FUSE connections: systemd's mount of it, or one of our own for the block."""
    if os.listdir(_FUSE_CONNECTIONS):
        yield _FUSE_CONNECTIONS
        return
    own = os.path.join(root, "connections")
    os.makedirs(own, mode=0o700, exist_ok=True)
    mount("fusectl", own, "fusectl")
    try:
        yield own
    finally:
        detach(own)
        os.rmdir(own)
