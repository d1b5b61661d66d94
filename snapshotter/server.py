"""Serving gRPC on a unix socket that only root can open.

The socket is bound in a directory of mode 0700, made 0600 there and then
renamed into place: at no time can another user connect, and a client finds
either the old socket or the new one. A socket that a killed server left is
replaced; one that answers is not.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import grpc

from snapshotter.errors import SocketInUse, SocketUnusable

Register = Callable[[grpc.aio.Server], None]
"""Adds one service to a server."""

_ANSWER_SECONDS = 2.0
_PATH_LIMIT = 107
"""Bytes in the path of a unix socket (sockaddr_un has 108, with the zero byte)."""


@asynccontextmanager
async def serve_grpc(path: str, *services: Register, grace: float = 5.0) -> AsyncIterator[grpc.aio.Server]:
    """Serve on the unix socket `path` (its directory must exist) inside the block.

    At the end no new calls are taken, and running ones get `grace` seconds.
    Raises SocketInUse, SocketUnusable.
    """
    await _check_unused(path)
    server = grpc.aio.server()
    for register in services:
        register(server)
    try:
        directory = tempfile.mkdtemp(prefix=".layergate-", dir=os.path.dirname(path) or ".")
    except OSError as error:
        raise SocketUnusable(f"no socket can be made there: {error.strerror}", path=path) from error
    try:
        bound = os.path.join(directory, "s")
        length = len(os.fsencode(bound))
        if length > _PATH_LIMIT:
            raise SocketUnusable(
                f"a socket's path may have {_PATH_LIMIT} bytes, and while it is made this one has {length}",
                path=path,
            )
        server.add_insecure_port(f"unix:{bound}")
        await server.start()
        os.chmod(bound, 0o600)
        os.rename(bound, path)
    except BaseException:
        await server.stop(None)
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, "s"))
        raise
    finally:
        os.rmdir(directory)
    ours = os.lstat(path).st_ino
    try:
        yield server
    finally:
        # Unless somebody has put another socket there. One that cannot be removed the next start replaces.
        with suppress(OSError):
            if os.lstat(path).st_ino == ours:
                os.unlink(path)
        await server.stop(grace)


async def _check_unused(path: str) -> None:
    """Raise SocketInUse unless `path` is free, or a socket that nobody answers on."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketInUse("exists and is no socket: name another address or move the file away", path=path)
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            stream = await anyio.connect_unix(path)
    except ConnectionRefusedError:
        return
    except TimeoutError:
        pass  # somebody listens, but is too busy to accept
    else:
        await stream.aclose()
    raise SocketInUse("somebody answers on this socket: is layergate running already?", path=path)
