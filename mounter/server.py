"""The mounter's end of the control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
import msgspec
from anyio.abc import ByteStream, TaskGroup, TaskStatus
from anyio.streams.buffered import BufferedByteReceiveStream

from fetcher.errors import FetchError
from fetcher.logs import get_logger
from mounter.control import (
    LINE_LIMIT,
    PROTOCOL,
    Failed,
    Reply,
    Request,
    decode_request,
    encode,
    short_socket_path,
    socket_path,
)
from mounter.errors import MounterError

log = get_logger("layergate.mounter")

Answer = Callable[[Request], Awaitable[Reply]]
"""Does what is asked. May raise FetchError, MounterError and OSError, which become a `Failed`."""

_REPLY_SECONDS: Final = 60.0
_ACCEPT_PAUSE: Final = 0.5


class ControlServer:
    """Takes requests on ROOT/mounter.sock; a request that ends the process is still replied to."""

    def __init__(self, root: str, answer: Answer, tasks: TaskGroup) -> None:
        self._root = root
        self._answer = answer
        self._tasks = tasks
        self._listening = anyio.CancelScope()

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        """Listen until `close`; the socket is there once the task has started. Raises OSError."""
        with short_socket_path(self._root) as path:
            listener = await anyio.create_unix_listener(path, mode=0o600)
        async with listener:
            task_status.started()
            with self._listening:
                while True:
                    try:
                        stream = await listener.accept()
                    except OSError as error:  # out of descriptors, say
                        log.warning("not_accepted", error=str(error))
                        await anyio.sleep(_ACCEPT_PAUSE)
                    else:
                        self._tasks.start_soon(self._serve_client, stream)

    def close(self) -> None:
        """Remove the socket and take no more clients; those that are connected may go on."""
        with suppress(FileNotFoundError):
            os.unlink(socket_path(self._root))
        self._listening.cancel()

    async def _serve_client(self, stream: ByteStream) -> None:
        lines = BufferedByteReceiveStream(stream)
        async with stream:
            with suppress(
                anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.DelimiterNotFound
            ):
                while True:
                    line = await lines.receive_until(b"\n", LINE_LIMIT)
                    with anyio.CancelScope(shield=True), anyio.move_on_after(_REPLY_SECONDS):
                        await stream.send(encode(await self._reply(line)))

    async def _reply(self, line: bytes) -> Reply:
        try:
            return await self._answer(decode_request(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Failed(f"not a request of protocol {PROTOCOL}: {error}")
        except (FetchError, MounterError, OSError) as error:
            return Failed(str(error))
        except Exception as defect:
            # A defect met by one request must not take the mount away from every container.
            log.exception("request_broken")
            return Failed(repr(defect))
