"""One gRPC channel to containerd: headers on every call, errors translated at this one place.

Runs on asyncio's event loop, since grpc.aio does. A cancelled caller cancels its call.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Generic, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from snapshotter.containerd.errors import (
    ContainerdAlreadyExists,
    ContainerdError,
    ContainerdNotFound,
    ContainerdRefused,
    ContainerdUnreachable,
)

ResponseT = TypeVar("ResponseT", bound=Message)

_MESSAGE_LIMIT = 16 << 20  # containerd's own default for what it takes and sends

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    # Otherwise the authority is the escaped path of the socket, which Go's HTTP/2 server may refuse.
    ("grpc.default_authority", "localhost"),
    ("grpc.enable_http_proxy", 0),
)

_BY_CODE: dict[grpc.StatusCode, type[ContainerdRefused]] = {
    grpc.StatusCode.NOT_FOUND: ContainerdNotFound,
    grpc.StatusCode.ALREADY_EXISTS: ContainerdAlreadyExists,
}


class DuplexCall(Generic[ResponseT]):
    """A bidirectional stream used in lock step: one answer to each request, as Content.Write gives them."""

    def __init__(
        self, call: grpc.aio.StreamStreamCall[Message, ResponseT], response: type[ResponseT]
    ) -> None:
        self._call = call
        self._response = response

    async def exchange(self, request: Message) -> ResponseT:
        """Send `request` and return its answer."""
        if not self._call.done():  # else the read says how it ended, where a write would not
            await self._call.write(request)
        answer = await self._call.read()
        if not isinstance(answer, self._response):  # grpc.aio.EOF
            raise ContainerdRefused("go on with a stream", code="OK", details="it ended before its answer")
        return answer


@dataclass(frozen=True, slots=True)
class ContainerdChannel:
    """A channel with the headers that its calls carry; `bound` copies share the connection."""

    address: str
    namespace: str
    lease: str | None
    _channel: grpc.aio.Channel

    def bound(self, lease: str) -> ContainerdChannel:
        """The same channel for calls whose results `lease` keeps from garbage collection."""
        return replace(self, lease=lease)

    async def unary(
        self,
        method: str,
        request: Message,
        response: type[ResponseT],
        *,
        action: str,
        within: float | None = None,
    ) -> ResponseT:
        """Call `method` ("service/Method"); `action` completes "containerd could not ...".

        `within` is in seconds; no limit by default, since unpacking a layer takes what it takes.

        Raises ContainerdUnreachable or ContainerdRefused.
        """
        call = self._channel.unary_unary(f"/{method}", type(request).SerializeToString, response.FromString)
        with self._translated(action):
            return cast(ResponseT, await call(request, timeout=within, metadata=self._headers()))

    @asynccontextmanager
    async def stream(
        self, method: str, request: Message, response: type[ResponseT], *, action: str
    ) -> AsyncIterator[AsyncIterator[ResponseT]]:
        """The answers that `method` streams, cancelled when the block is left before their end.

        Raises ContainerdUnreachable or ContainerdRefused, within the block too.
        """
        open_call = self._channel.unary_stream(
            f"/{method}", type(request).SerializeToString, response.FromString
        )
        call = open_call(request, metadata=self._headers())
        try:
            with self._translated(action):
                yield call.__aiter__()
        finally:
            call.cancel()

    @asynccontextmanager
    async def duplex(
        self, method: str, request: type[Message], response: type[ResponseT], *, action: str
    ) -> AsyncIterator[DuplexCall[ResponseT]]:
        """A bidirectional stream on `method`, cancelled when the block is left before its end."""
        open_call = self._channel.stream_stream(f"/{method}", request.SerializeToString, response.FromString)
        call = open_call(None, metadata=self._headers())
        try:
            with self._translated(action):
                yield DuplexCall(call, response)
        finally:
            call.cancel()

    def _headers(self) -> grpc.aio.Metadata:
        headers = [("containerd-namespace", self.namespace)]
        if self.lease is not None:
            headers.append(("containerd-lease", self.lease))
        return grpc.aio.Metadata(*headers)

    @contextmanager
    def _translated(self, action: str) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._translate(error, action) from error

    def _translate(self, error: grpc.aio.AioRpcError, action: str) -> ContainerdError:
        code, details = error.code(), error.details() or "no details"
        # containerd passes on UNAVAILABLE from its plugins; only the channel knows whose it is.
        connected = self._channel.get_state() is grpc.ChannelConnectivity.READY
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and not connected:
            return ContainerdUnreachable(
                f"containerd does not answer at {self.address}: is it running? (systemctl status containerd)",
                address=self.address,
            )
        return _BY_CODE.get(code, ContainerdRefused)(action, code=code.name, details=details)


@asynccontextmanager
async def open_channel(address: str, namespace: str) -> AsyncIterator[ContainerdChannel]:
    """A channel to containerd's socket at `address`, a path or `unix://` and a path.

    Raises ContainerdUnreachable at once where there is no socket or no right to use it; a socket
    that nobody listens on shows at the first call.
    """
    path = address.removeprefix("unix://")
    async with grpc.aio.insecure_channel(_checked_target(path), _CHANNEL_OPTIONS) as channel:
        yield ContainerdChannel(address=path, namespace=namespace, lease=None, _channel=channel)


def _checked_target(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise ContainerdUnreachable(
            f"no containerd at {path} ({error.strerror}): start it (systemctl start containerd) "
            "or name its socket with --containerd",
            address=path,
        ) from error
    if not stat.S_ISSOCK(mode):
        raise ContainerdUnreachable(
            f"{path} is not a socket: name containerd's with --containerd", address=path
        )
    if not os.access(path, os.W_OK):
        raise ContainerdUnreachable(
            f"not permitted to use containerd's socket {path}: run this as root", address=path
        )
    return f"unix://{os.path.abspath(path)}"
