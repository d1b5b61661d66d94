"""layergate's own gRPC service, on the same socket: status, the cache, and word of an image to be pulled."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import msgspec

from fetcher.errors import FetchError
from snapshotter.cache.served import ServedCache
from snapshotter.cache.values import Selection
from snapshotter.errors import MetadataError
from snapshotter.lazy import LazyLowers
from snapshotter.proto import admin_pb2 as pb
from snapshotter.proto.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server
from snapshotter.status import StatusReader

_SELECTIONS: Final = msgspec.json.Decoder(Selection)
_Context = grpc.aio.ServicerContext[Any, Any]  # its messages differ from call to call


class AdminService(AdminServicer):
    """layergate.v1.Admin; translates, decides nothing."""

    def __init__(self, root: str, lazy: LazyLowers, status: StatusReader, cache: ServedCache) -> None:
        self._root = os.path.realpath(root)
        self._lazy = lazy
        self._status = status
        self._cache = cache

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not been started."""
        add_AdminServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Status(self, request: pb.StatusRequest, context: _Context) -> pb.StatusReply:  # noqa: N802
        """The status as JSON."""
        return pb.StatusReply(json=msgspec.json.encode(await self._status.read()))

    async def OpenImage(self, request: pb.OpenImageRequest, context: _Context) -> pb.OpenImageReply:  # noqa: N802
        """Begin opening the image's layers; answers how many may be lazy, without waiting for them."""
        try:
            count = await self._lazy.announce(
                request.reference, request.manifest, plain_http=request.plain_http
            )
        except FetchError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return pb.OpenImageReply(json=msgspec.json.encode({"layers": count}))

    async def CacheInventory(  # noqa: N802
        self, request: pb.CacheInventoryRequest, context: _Context
    ) -> pb.CacheInventoryReply:
        """What is in the cache, as JSON."""
        async with self._cache_of(request.root, context) as cache:
            return pb.CacheInventoryReply(json=msgspec.json.encode(await cache.inventory()))

    async def CacheClean(self, request: pb.CacheCleanRequest, context: _Context) -> pb.CacheCleanReply:  # noqa: N802
        """Remove layers, or say which would be; the report as JSON."""
        async with self._cache_of(request.root, context) as cache:
            selection = _SELECTIONS.decode(request.selection_json)
            report = await cache.clean(selection, dry_run=request.dry_run)
            return pb.CacheCleanReply(json=msgspec.json.encode(report))

    @asynccontextmanager
    async def _cache_of(self, root: str, context: _Context) -> AsyncIterator[ServedCache]:
        """The cache, if `root`, a real path, is ours; its errors as statuses."""
        if root != self._root:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"serve's root is {self._root}")
        try:
            yield self._cache
        except (OSError, MetadataError) as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        except msgspec.DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
