"""Running commands in processes that are forked with their modules loaded: `snapshotter.entry`'s other end.

serve accepts, and forks; the command's process has the caller's standard files, environment and directory, is
nobody's child, and goes on without serve. Belongs to serve's event loop, but for what the new process does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import anyio
from anyio import to_thread

from fetcher.logs import get_logger
from fetcher.version import VERSION
from mounter.forks import set_title, start_alone
from snapshotter.entry import BEGUN, commands_socket

log = get_logger("layergate.commands")

PRELOAD: Final = (
    "asyncio",
    "fetcher.credentials",
    "fetcher.registry",
    "snapshotter.cli.exit_codes",
    "snapshotter.cli.progress",
    "snapshotter.cli.pull",
    "snapshotter.config",
    "snapshotter.containerd.pull",
    "snapshotter.containerd.resolve",
    "snapshotter.proto.admin_pb2_grpc",
)
"""What a pull needs, for the fork server to have it loaded."""
_REQUEST_LIMIT: Final = 1 << 20
_REQUEST_SECONDS: Final = 5.0
_BACKLOG: Final = 64
_FILES: Final = 3


@dataclass(frozen=True, slots=True)
class _Request:
    """A command line and what it is run with; `encoding` is that of standard output."""

    version: str
    encoding: str
    directory: str
    arguments: list[str]
    environment: dict[str, str]


def _parse(packet: bytes) -> _Request:
    """The request in a packet of `snapshotter.entry`. Raises ValueError for anything else."""
    version, encoding, directory, count, *rest = os.fsdecode(packet).split("\0")
    arguments, environment = rest[: int(count)], rest[int(count) :]
    pairs = (variable.partition("=") for variable in environment)
    return _Request(version, encoding, directory, arguments, {name: value for name, _, value in pairs})


@asynccontextmanager
async def serve_commands(address: str) -> AsyncIterator[None]:
    """Take commands inside the block. Where that cannot be, they run in processes of their own as ever."""
    path = commands_socket(address)
    try:
        listener = await to_thread.run_sync(_listen, path)
    except OSError as error:
        log.warning("commands_not_served", path=path, error=str(error))
        yield
        return
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_accept, listener)
            yield
            tasks.cancel_scope.cancel()
    finally:
        with listener, suppress(OSError):
            os.unlink(path)


def _listen(path: str) -> socket.socket:
    """A socket in a directory that only we can enter, renamed into place once only we can use it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with tempfile.TemporaryDirectory(prefix=".layergate-", dir=os.path.dirname(path)) as directory:
            bound = os.path.join(directory, "c")
            listener.bind(bound)
            os.chmod(bound, 0o600)
            listener.listen(_BACKLOG)
            listener.setblocking(False)
            os.rename(bound, path)
    except BaseException:
        listener.close()
        raise
    return listener


async def _accept(listener: socket.socket) -> None:
    while True:
        await anyio.wait_readable(listener)
        try:
            connection, _ = listener.accept()
        except OSError:  # it is gone already
            continue
        with connection:
            try:
                await to_thread.run_sync(start_alone, "command", _run, connection)
            except Exception as error:  # the caller sees its socket closed, and does the work itself
                log.warning("command_not_forked", error=repr(error))


def _run(connection: socket.socket) -> None:
    """Run the command that comes over `connection`, in a process of its own."""
    connection.settimeout(_REQUEST_SECONDS)
    data, files, _, _ = socket.recv_fds(connection, _REQUEST_LIMIT, _FILES)
    try:
        request = _parse(data)
    except ValueError:  # of another version
        return
    if request.version != VERSION or len(files) != _FILES:
        return
    for number, fd in enumerate(files):
        os.dup2(fd, number)
        os.close(fd)
    _take_over(request)
    connection.settimeout(None)
    connection.send(BEGUN, socket.MSG_NOSIGNAL)  # a caller that has given up meanwhile does it itself
    threading.Thread(target=_obey, args=(connection,), daemon=True).start()
    status = _command(request.arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):  # nobody waits any more
        connection.send(str(status).encode(), socket.MSG_NOSIGNAL)


def _take_over(request: _Request) -> None:
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.directory)
    set_title(f"{request.arguments[0]} ... {request.arguments[-1]}")  # it has a hundred bytes or so
    sys.stdout = open(1, "w", encoding=request.encoding, closefd=False)  # noqa: SIM115 - for good
    sys.stderr = open(2, "w", encoding=request.encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _obey(connection: socket.socket) -> None:
    """Pass on the caller's signals; its end is one of them."""
    while True:
        with suppress(OSError):
            if packet := connection.recv(_BACKLOG):
                os.kill(os.getpid(), int(packet))
                continue
        os.kill(os.getpid(), signal.SIGTERM)
        return


def _command(arguments: list[str]) -> int:
    from snapshotter.cli import main

    sys.argv = ["layergate", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as defect:
        sys.excepthook(type(defect), defect, defect.__traceback__)
        return 1
    return 0
