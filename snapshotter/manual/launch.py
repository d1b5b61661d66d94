"""A keeper as a process of its own, and the command's end of the line to it. Blocking.

The keeper is forked off the command, so it has loaded already what it needs; in a session of its own, so
that an interrupt on the terminal meets the command alone; and its output goes to the mount's log.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio

from mounter.fork_socket import remove_fork_socket
from snapshotter.manual.messages import KEEP, Message, decode, encode

_PACKET_LIMIT: Final = 64 << 10
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM)


class SocketReporter:
    """The command at the other end of a socket; belongs to the keeper's event loop."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._kept = False

    @property
    def kept(self) -> bool:
        """See `Reporter.kept`."""
        return self._kept

    def tell(self, message: Message) -> None:
        """See `Reporter.tell`; a command that is stopped or gone misses it."""
        with suppress(OSError):
            self._socket.send(encode(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def abandoned(self) -> None:
        """See `Reporter.abandoned`."""
        await anyio.wait_readable(self._socket)
        if _receive(self._socket) == KEEP:
            self._kept = True
            self._socket.close()  # which tells the command that its word was heard
            await anyio.sleep_forever()


class KeeperProcess:
    """The keeper, as its command sees it."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._socket = connection
        self._told_to_keep = False

    def messages(self) -> Iterator[Message]:
        """What it says, until it ends."""
        while packet := _receive(self._socket):
            yield decode(packet)

    def keep(self) -> None:
        """Let it go on without us; returns when it knows. What it says meanwhile is lost."""
        self._told_to_keep = True
        with suppress(OSError):  # it has ended
            self._socket.send(KEEP, socket.MSG_NOSIGNAL)
        while _receive(self._socket):
            pass

    def abandon(self) -> None:
        """Have it undo everything; returns when it has, and ended."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        if self._told_to_keep:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)
        self.wait()

    def wait(self) -> None:
        """Return when it has ended."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextmanager
def start_keeper(run: Callable[[SocketReporter], None], log: str) -> Iterator[KeeperProcess]:
    """Fork a process that does `run` and ends. If the block fails or is interrupted, everything is undone.

    `run` may raise nothing; `log` is the file that its output goes to, locked (flock) for as long as it may
    still begin or runs. Only the thread that calls this goes on in the new process: no other may hold a lock
    of what `run` needs. Raises OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, _opened_log(log) as output:
        # Nobody is to be interrupted between the fork and what follows an interrupt.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        pid = os.fork()
        if not pid:
            ours.close()
            try:
                _leave_command(output)
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                run(SocketReporter(theirs))
            finally:
                remove_fork_socket()
                # Nothing of the command's is to happen here: no handler, no traceback, no flush.
                os._exit(0)
        theirs.close()
        keeper = KeeperProcess(pid, ours)
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield keeper
        except BaseException:
            keeper.abandon()
            raise


@contextmanager
def _opened_log(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield fd
    finally:
        os.close(fd)


def _receive(connection: socket.socket) -> bytes:
    """The next packet; nothing if the other end is closed, maybe without having read all of ours."""
    try:
        return connection.recv(_PACKET_LIMIT)
    except ConnectionResetError:
        return b""


def _leave_command(output: int) -> None:
    os.setsid()
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
