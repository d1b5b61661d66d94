"""The gRPC side: translates between containerd's messages and `Snapshotter`.

Nothing is decided here. A call that has begun runs to its end even if the
caller hangs up, so that nothing is left half done; List, which changes nothing,
stops. Runs on grpc.aio's event loop, asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from fetcher.logs import get_logger
from snapshotter.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SnapshotterError,
    Unavailable,
)
from snapshotter.metadata import Snapshot
from snapshotter.mounts import Mount
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.proto.snapshots_pb2_grpc import SnapshotsServicer, add_SnapshotsServicer_to_server
from snapshotter.snapshots import Snapshotter

log = get_logger("layergate.service")

STATUSES: dict[type[SnapshotterError], grpc.StatusCode] = {
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    NotFound: grpc.StatusCode.NOT_FOUND,
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}
"""What each error is to containerd; one that is not here is INTERNAL."""

_Context = grpc.aio.ServicerContext[Any, Any]  # its messages differ from call to call
_T = TypeVar("_T")


async def abort(context: _Context, error: Exception) -> NoReturn:
    """Answer a call with the status that the error has."""
    for kind in type(error).__mro__:
        if kind in STATUSES:
            await context.abort(STATUSES[kind], str(error))
    if isinstance(error, SnapshotterError | OSError):
        log.error("call_failed", error=str(error))
    else:  # a defect of ours
        log.error("call_failed", exc_info=error)
    message = str(error) if isinstance(error, SnapshotterError) else f"{type(error).__name__}: {error}"
    await context.abort(grpc.StatusCode.INTERNAL, " ".join(message.split()))


class SnapshotsService(SnapshotsServicer):
    """containerd.services.snapshots.v1.Snapshots. `drain` before the loop ends."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter
        self._running: set[asyncio.Task[Any]] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server that has not been started."""
        add_SnapshotsServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def drain(self, seconds: float) -> None:
        """Wait for the calls that still run after their callers left; cancel them after `seconds`."""
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def Prepare(  # noqa: N802 -- gRPC's names
        self, request: pb.PrepareSnapshotRequest, context: _Context
    ) -> pb.PrepareSnapshotResponse:
        """Make an active snapshot, or find that there is no need to."""
        mounts = await self._complete(
            context, self._snapshotter.prepare(request.key, request.parent, dict(request.labels))
        )
        return pb.PrepareSnapshotResponse(mounts=_mounts(mounts))

    async def View(  # noqa: N802
        self, request: pb.ViewSnapshotRequest, context: _Context
    ) -> pb.ViewSnapshotResponse:
        """Make a read-only snapshot."""
        mounts = await self._complete(
            context, self._snapshotter.view(request.key, request.parent, dict(request.labels))
        )
        return pb.ViewSnapshotResponse(mounts=_mounts(mounts))

    async def Mounts(  # noqa: N802
        self, request: pb.MountsRequest, context: _Context
    ) -> pb.MountsResponse:
        """Give a snapshot's mounts again."""
        mounts = await self._complete(context, self._snapshotter.mounts(request.key))
        return pb.MountsResponse(mounts=_mounts(mounts))

    async def Commit(  # noqa: N802
        self, request: pb.CommitSnapshotRequest, context: _Context
    ) -> Empty:
        """Turn an active snapshot into a committed one."""
        await self._complete(
            context,
            self._snapshotter.commit(request.name, request.key, dict(request.labels), request.parent),
        )
        return Empty()

    async def Remove(  # noqa: N802
        self, request: pb.RemoveSnapshotRequest, context: _Context
    ) -> Empty:
        """Forget a snapshot."""
        await self._complete(context, self._snapshotter.remove(request.key))
        return Empty()

    async def Stat(  # noqa: N802
        self, request: pb.StatSnapshotRequest, context: _Context
    ) -> pb.StatSnapshotResponse:
        """Give what is known of a snapshot."""
        snapshot = await self._complete(context, self._snapshotter.stat(request.key))
        return pb.StatSnapshotResponse(info=_info(snapshot))

    async def Update(  # noqa: N802
        self, request: pb.UpdateSnapshotRequest, context: _Context
    ) -> pb.UpdateSnapshotResponse:
        """Change a snapshot's labels."""
        snapshot = await self._complete(
            context,
            self._snapshotter.update(
                request.info.name, dict(request.info.labels), list(request.update_mask.paths)
            ),
        )
        return pb.UpdateSnapshotResponse(info=_info(snapshot))

    async def List(  # noqa: N802
        self, request: pb.ListSnapshotsRequest, context: _Context
    ) -> AsyncIterator[pb.ListSnapshotsResponse]:
        """Stream the snapshots that any of the filters matches."""
        try:
            async for page in self._snapshotter.walk(list(request.filters)):
                yield pb.ListSnapshotsResponse(info=[_info(snapshot) for snapshot in page])
        except Exception as error:
            # The boundary: every error has to become a status, and `abort` logs those nobody foresaw.
            await abort(context, error)

    async def Usage(  # noqa: N802
        self, request: pb.UsageRequest, context: _Context
    ) -> pb.UsageResponse:
        """Give what a snapshot takes."""
        usage = await self._complete(context, self._snapshotter.usage(request.key))
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def Cleanup(  # noqa: N802
        self, request: pb.CleanupRequest, context: _Context
    ) -> Empty:
        """Delete what removed snapshots left."""
        await self._complete(context, self._snapshotter.cleanup())
        return Empty()

    async def _complete(self, context: _Context, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a call of the snapshotter to its end; its error becomes the call's status."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_abandoned)
            raise
        except Exception as error:
            # The boundary: every error has to become a status, and `abort` logs those nobody foresaw.
            await abort(context, error)


def _log_abandoned(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("abandoned_call_failed", error=str(error))


def _mounts(mounts: Sequence[Mount]) -> list[pb.Mount]:
    return [pb.Mount(type=mount.type, source=mount.source, options=mount.options) for mount in mounts]


def _info(snapshot: Snapshot) -> pb.Info:
    return pb.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=pb.Kind.Name(snapshot.kind),
        created_at=_timestamp(snapshot.created_ns),
        updated_at=_timestamp(snapshot.updated_ns),
        labels=snapshot.labels,
    )


def _timestamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(nanoseconds, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)
