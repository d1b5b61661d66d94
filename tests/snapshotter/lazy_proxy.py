"""A remote snapshotter of a hundred lines: overlay mounts, and layers that it makes by itself when told to.

It keeps no promise across restarts; it is there so that a pull meets a snapshotter whose
every answer the test decides.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import grpc
from google.protobuf import empty_pb2

from snapshotter.proto import snapshots_pb2 as messages
from snapshotter.proto import snapshots_pb2_grpc as services
from snapshotter.proto.admin_pb2 import OpenImageReply, OpenImageRequest
from snapshotter.proto.admin_pb2_grpc import AdminServicer, add_AdminServicer_to_server

REF = "containerd.io/snapshot.ref"
LAYER = "containerd.io/snapshot/cri.layer-digest"


@dataclass
class Snapshot:
    info: messages.Info
    directory: str


@dataclass
class LazyProxy(services.SnapshotsServicer):
    """`lazy` maps layer digests to the tars that they are made of; `lying` says that all layers are there."""

    directory: str
    lazy: Mapping[str, bytes] = field(default_factory=dict)
    lying: bool = False
    prepared: list[messages.PrepareSnapshotRequest] = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)

    def reset(self) -> None:
        """No layer is made by itself, and no call was seen."""
        self.lazy, self.lying = {}, False
        self.prepared.clear()

    def Prepare(  # noqa: N802
        self, request: messages.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> messages.PrepareSnapshotResponse:
        self.prepared.append(request)
        snapshot = self._begin(request.key, request.parent, messages.ACTIVE, request.labels)
        if self.lying and REF in request.labels:
            del self.snapshots[request.key]
            _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "trust me")
        tar = self.lazy.get(request.labels.get(LAYER, ""))
        if tar is not None:
            # Not tarfile: its filters came with 3.11.4, and Debian 12 has 3.11.2.
            subprocess.run(["tar", "-x", "-C", f"{snapshot.directory}/fs"], input=tar, check=True)
            self._commit(request.key, request.labels[REF], request.labels)
            _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "made lazily")
        return messages.PrepareSnapshotResponse(mounts=[self._mount(snapshot)])

    def View(  # noqa: N802
        self, request: messages.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> messages.ViewSnapshotResponse:
        snapshot = self._begin(request.key, request.parent, messages.VIEW, request.labels)
        return messages.ViewSnapshotResponse(mounts=[self._mount(snapshot)])

    def Mounts(  # noqa: N802
        self, request: messages.MountsRequest, context: grpc.ServicerContext
    ) -> messages.MountsResponse:
        return messages.MountsResponse(mounts=[self._mount(self._get(request.key, context))])

    def Commit(  # noqa: N802
        self, request: messages.CommitSnapshotRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        self._commit(request.key, request.name, request.labels)
        return empty_pb2.Empty()

    def Remove(  # noqa: N802
        self, request: messages.RemoveSnapshotRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        if any(snapshot.info.parent == request.key for snapshot in self.snapshots.values()):
            _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "cannot remove snapshot with child")
        self._get(request.key, context)
        del self.snapshots[request.key]
        return empty_pb2.Empty()

    def Stat(  # noqa: N802
        self, request: messages.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> messages.StatSnapshotResponse:
        return messages.StatSnapshotResponse(info=self._get(request.key, context).info)

    def List(  # noqa: N802
        self, request: messages.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.ListSnapshotsResponse]:
        # Without heed to the filters: containerd looks again at what it gets.
        yield messages.ListSnapshotsResponse(info=[entry.info for entry in list(self.snapshots.values())])

    def Usage(  # noqa: N802
        self, request: messages.UsageRequest, context: grpc.ServicerContext
    ) -> messages.UsageResponse:
        return messages.UsageResponse(size=1, inodes=1)

    def Cleanup(  # noqa: N802
        self, request: messages.CleanupRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        return empty_pb2.Empty()

    def _begin(self, key: str, parent: str, kind: messages.Kind, labels: Mapping[str, str]) -> Snapshot:
        directory = os.path.join(self.directory, str(len(os.listdir(self.directory))))
        os.makedirs(f"{directory}/fs")
        os.makedirs(f"{directory}/work")
        info = messages.Info(name=key, parent=parent, kind=kind, labels=labels)
        self.snapshots[key] = Snapshot(info, directory)
        return self.snapshots[key]

    def _commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        snapshot = self.snapshots.pop(key)
        parent = snapshot.info.parent
        snapshot.info = messages.Info(name=name, parent=parent, kind=messages.COMMITTED, labels=labels)
        self.snapshots[name] = snapshot

    def _get(self, key: str, context: grpc.ServicerContext) -> Snapshot:
        if key not in self.snapshots:
            _refuse(context, grpc.StatusCode.NOT_FOUND, f"no snapshot {key}")
        return self.snapshots[key]

    def _mount(self, snapshot: Snapshot) -> messages.Mount:
        lower = []
        parent = snapshot.info.parent
        while parent:
            lower.append(f"{self.snapshots[parent].directory}/fs")
            parent = self.snapshots[parent].info.parent
        own = f"{snapshot.directory}/fs"
        if not lower:
            return messages.Mount(type="bind", source=own, options=["rw", "rbind"])
        if snapshot.info.kind == messages.VIEW:
            options = [f"lowerdir={':'.join([own, *lower])}"]
        else:
            options = [f"workdir={snapshot.directory}/work", f"upperdir={own}", f"lowerdir={':'.join(lower)}"]
        return messages.Mount(type="overlay", source="overlay", options=options)


class Announcements(AdminServicer):
    """layergate's own service, which only remembers what it was told."""

    def __init__(self) -> None:
        self.images: list[OpenImageRequest] = []

    def OpenImage(  # noqa: N802
        self, request: OpenImageRequest, context: grpc.ServicerContext
    ) -> OpenImageReply:
        self.images.append(request)
        return OpenImageReply()


@contextmanager
def serving(
    proxy: LazyProxy, address: str, announcements: Announcements | None = None
) -> Iterator[LazyProxy]:
    """Serve `proxy` on the unix socket `address`, and layergate's own service if it is given."""
    os.makedirs(proxy.directory, exist_ok=True)
    with futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        services.add_SnapshotsServicer_to_server(proxy, server)  # type: ignore[no-untyped-call]
        if announcements is not None:
            add_AdminServicer_to_server(announcements, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix://{address}")
        server.start()
        try:
            yield proxy
        finally:
            server.stop(grace=None).wait()


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details)
