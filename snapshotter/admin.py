"""layergate's own gRPC service, on the same socket: status, and word of an image about to be pulled."""

from __future__ import annotations

from typing import Any

import grpc
import msgspec

from fetcher.errors import FetchError
from fetcher.manifest import Platform
from snapshotter.lazy import LazyLowers
from snapshotter.proto import admin_pb2 as pb
from snapshotter.proto.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from snapshotter.status import StatusReader

_Context = grpc.aio.ServicerContext[Any, Any]  # its messages differ from call to call


class AdminService(AdminServicer):
    """layergate.v1.Admin; translates, decides nothing."""

    def __init__(self, lazy: LazyLowers, status: StatusReader) -> None:
        self._lazy = lazy
        self._status = status

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not been started."""
        add_AdminServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:  # noqa: N802
        """The status as JSON."""
        return pb.StatusReply(json=msgspec.json.encode(await self._status.read()))

    async def OpenImage(self, request: pb.OpenImageRequest, context: _Context) -> pb.OpenImageReply:  # noqa: N802
        """Begin opening the image's layers; answers how many may be lazy, without waiting for them."""
        platform = Platform.parse(request.platform) if request.platform else Platform.host()
        try:
            count = await self._lazy.announce(
                request.reference, request.manifest_digest, platform, plain_http=request.plain_http
            )
        except FetchError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.OpenImageReply(json=msgspec.json.encode({"layers": count}))
