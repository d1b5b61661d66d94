"""What the mounter's process asks of its host: to be let alone, and to be let have its way."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Final

from fetcher.logs import get_logger
from mounter.logfile import last_line
from mounter.syscalls import detach, mount

log = get_logger("layergate.mounter")

READY: Final = "ready"

_FUSE_CONNECTIONS: Final = "/sys/fs/fuse/connections"
_OOM_SCORE: Final = -500


def no_report(text: str) -> None:
    """Nobody waits."""


def leave_starter(root: str) -> Callable[[str], None]:
    """Go on in a grandchild of the caller; what is reported first ends the parent, 0 for READY."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as pipe:
            said = pipe.readline().rstrip("\n")
        if said != READY:
            sys.stderr.write((said or last_line(os.path.join(root, "mounter.log"))) + "\n")
            sys.stderr.flush()
        os._exit(0 if said == READY else 1)
    os.close(reader)
    os.setsid()

    def report(text: str) -> None:
        nonlocal writer
        if writer >= 0:
            with contextlib.suppress(BrokenPipeError):  # the starter is dead: so much the more are we needed
                os.write(writer, text.replace("\n", " ").encode() + b"\n")
            os.close(writer)
            writer = -1

    return report


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
