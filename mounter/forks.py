"""The fork server: a process that has modules loaded already, so that what is forked off it starts in 5 ms.

A fresh interpreter takes 250 ms of processor for the modules of a worker or of a mounter, and more where
they have to come from the disk first. One fork server a process, multiprocessing's own; it ends with that
process, and what was started by `start_alone` does not. Safe from several threads.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Final, TypeVarTuple

import setproctitle

_context = multiprocessing.get_context("forkserver")
_table = threading.Lock()
"""multiprocessing looks through its processes at each start, and fails on one that is just being closed."""
_PR_SET_PDEATHSIG: Final = 1
"""include/uapi/linux/prctl.h"""
_libc = ctypes.CDLL(None, use_errno=True)
_STANDARD: Final = 3
"""Descriptors that every process has."""

Arguments = TypeVarTuple("Arguments")

# Otherwise a title may take the place of what /proc/PID/environ shows.
os.environ.setdefault("SPT_NOENV", "1")


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the fork server with `modules` loaded; blocking. It ends with this process.

    Ctrl-C reaches every process of a terminal, and would end it while it loads: SIGINT is blocked in it, and
    in what is started from it but by `start_alone`.
    """
    _context.set_forkserver_preload([*modules, "mounter.frozen"])
    resource_tracker.ensure_running()  # unblocks SIGINT where it is not running yet
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Child:
    """A child of this process that does `work`, exits with what that gives, and is killed when this one ends.

    It has all that is in memory here. Made in the main thread, with no other thread and no event loop. After
    what `work` raises its exit code is 1. Close it in any case, or wait for it.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        """Fork. Raises OSError."""
        parent = os.getpid()
        gc.freeze()  # the garbage collector, here and there, would make both have their own of everything
        self.pid = os.fork()
        self._waited = False
        if not self.pid:
            status = 1
            try:
                _end_with_parent(parent)
                status = work()
            finally:
                os._exit(status)

    def wait(self) -> int:
        """Its exit code when it has ended, negative for a signal. Blocking; once."""
        _, status = os.waitpid(self.pid, 0)
        self._waited = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End it if it is still at work."""
        if not self._waited:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def _end_with_parent(parent: int) -> None:
    if _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    if os.getppid() != parent:
        os._exit(1)


def pipe() -> tuple[Connection, Connection]:
    """Two ends of a pipe, either of which may be given to a process that is started here."""
    return _context.Pipe()


def start(target: Callable[[*Arguments], None], *arguments: *Arguments) -> ForkServerProcess:
    """Start a process that does `target` and ends; give it to `close` afterwards. Raises OSError."""
    process = _context.Process(target=target, args=arguments, daemon=True)
    with _table:
        process.start()
    return process


def close(process: ForkServerProcess, seconds: float) -> None:
    """Wait for the end of a process; kill it if that takes longer than `seconds`."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
    with _table:
        process.close()


def start_alone(title: str, target: Callable[[*Arguments], None], *arguments: *Arguments) -> None:
    """Start a process that is nobody's child, in a session of its own, and outlives us.

    Of our descriptors it has those of `arguments` that have a `fileno`, and nothing as standard input and
    output. `title` is what ps shows. Returns when it has been forked. Raises OSError.
    """
    process = start(_leave, title, target, arguments)
    process.join()
    with _table:
        process.close()


def set_title(text: str) -> None:
    """Have ps and top show this process as `layergate: text`."""
    setproctitle.setproctitle(f"layergate: {text}")


def _leave(title: str, target: Callable[[*Arguments], None], arguments: tuple[*Arguments]) -> None:
    if os.fork():
        os._exit(0)
    status = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _close_all_but({argument.fileno() for argument in arguments if hasattr(argument, "fileno")})
        set_title(title)
        target(*arguments)
        status = 0
    finally:
        # Not by way of multiprocessing, which would take us for its own.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _close_all_but(kept: set[int]) -> None:
    """Of what multiprocessing left open, the fork server would take one descriptor for a sign of life."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(_STANDARD):
        os.dup2(nothing, number)
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        if number >= _STANDARD and number not in kept:
            try:
                os.close(number)
            except OSError:  # the descriptor of this listing
                continue
