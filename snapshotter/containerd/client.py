"""What we ask of containerd, one method a call: content, images, leases, snapshots, diffs.

A thin typed wrapper over `snapshotter.containerd.channel`; no policy. containerd serves the
snapshots service to clients under the same name that we serve it to containerd, so both
sides use one set of messages. Works with containerd 1.6, 1.7 and 2.x.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import anyio
from google.protobuf import empty_pb2, field_mask_pb2

from snapshotter.containerd.channel import ContainerdChannel, ResponseT, open_channel
from snapshotter.containerd.errors import (
    ContainerdAlreadyExists,
    ContainerdError,
    ContainerdNotFound,
    ContainerdRefused,
    ContentLocked,
    SnapshotterUnknown,
    SnapshotterUnreachable,
)
from snapshotter.containerd.leases import add_to_lease, create_lease, delete_abandoned_leases, delete_lease
from snapshotter.containerd.sending import Source, send_blob
from snapshotter.containerd.types import ContentInfo, Descriptor, Image, Mount, SnapshotInfo, SnapshotKind
from snapshotter.proto import (
    content_pb2,
    descriptor_pb2,
    diff_pb2,
    images_pb2,
    introspection_pb2,
    snapshots_pb2,
    version_pb2,
)

_CONTENT = "containerd.services.content.v1.Content"
_DIFF = "containerd.services.diff.v1.Diff"
_IMAGES = "containerd.services.images.v1.Images"
_INTROSPECTION = "containerd.services.introspection.v1.Introspection"
_SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
_VERSION = "containerd.services.version.v1.Version"

RECONNECT_SECONDS = 4.0
"""containerd waits up to 3 before it dials a snapshotter's socket again."""

_RECONNECT_POLL = 0.2  # seconds
_ANSWER_LIMIT = 10.0  # seconds, for calls that touch no layer


_SnapshotRequest = (
    snapshots_pb2.CommitSnapshotRequest
    | snapshots_pb2.PrepareSnapshotRequest
    | snapshots_pb2.RemoveSnapshotRequest
    | snapshots_pb2.StatSnapshotRequest
)


class ContainerdClient:
    """containerd in one namespace. Every method may raise ContainerdUnreachable and ContainerdRefused.

    `patience` is how many seconds a call goes on trying while containerd cannot reach its snapshotter.
    """

    def __init__(self, channel: ContainerdChannel, *, patience: float) -> None:
        self._channel = channel
        self._patience = patience

    @property
    def address(self) -> str:
        """Path of containerd's socket."""
        return self._channel.address

    @property
    def namespace(self) -> str:
        """The namespace that all calls work in."""
        return self._channel.namespace

    async def version(self) -> str:
        """containerd's version, such as "1.6.20"."""
        answer = await self._channel.unary(
            f"{_VERSION}/Version",
            empty_pb2.Empty(),
            version_pb2.VersionResponse,
            action="tell its version",
            within=_ANSWER_LIMIT,
        )
        return answer.version

    async def snapshotters(self) -> tuple[str, ...]:
        """Names of the snapshotters that containerd has loaded."""
        answer = await self._channel.unary(
            f"{_INTROSPECTION}/Plugins",
            introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1"]),
            introspection_pb2.PluginsResponse,
            action="list its snapshotters",
            within=_ANSWER_LIMIT,
        )
        return tuple(sorted(plugin.id for plugin in answer.plugins if not plugin.HasField("init_err")))

    async def require_snapshotter(self, snapshotter: str) -> None:
        """Raise SnapshotterUnknown unless containerd has `snapshotter`."""
        known = await self.snapshotters()
        if snapshotter not in known:
            raise SnapshotterUnknown(snapshotter, known=known)

    # Leases

    @asynccontextmanager
    async def leased(self, seconds: int) -> AsyncIterator[ContainerdClient]:
        """A client whose results a new lease keeps, until the block ends or `seconds` have passed.

        What it kept is collected as garbage before an exception or a cancellation of the block goes on.
        Leases of processes that were killed inside such a block are deleted, too.
        """
        lease = await create_lease(self._channel, seconds)
        whole = False
        try:
            yield ContainerdClient(self._channel.bound(lease), patience=self._patience)
            whole = True
        finally:
            # It expires by itself, so a failure to delete it must not hide how the block ended.
            with anyio.move_on_after(_ANSWER_LIMIT, shield=True), suppress(ContainerdError):
                await delete_lease(self._channel, lease, collect=not whole)
                await delete_abandoned_leases(self._channel)

    async def keep_snapshot(self, snapshotter: str, name: str) -> None:
        """Add a snapshot that was there before to this client's lease."""
        await add_to_lease(self._channel, f"snapshots/{snapshotter}", name)

    async def keep_content(self, digest: str) -> None:
        """Add a blob that was there before to this client's lease."""
        await add_to_lease(self._channel, "content", digest)

    # Content

    async def content_info(self, digest: str) -> ContentInfo | None:
        """The blob's size and labels, or None where it is not in the store."""
        try:
            answer = await self._channel.unary(
                f"{_CONTENT}/Info",
                content_pb2.InfoRequest(digest=digest),
                content_pb2.InfoResponse,
                action=f"look up content {digest}",
            )
        except ContainerdNotFound:
            return None
        return ContentInfo(answer.info.digest, answer.info.size, dict(answer.info.labels))

    @asynccontextmanager
    async def read_content(self, digest: str, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes [start, end) of a blob, in blocks. Raises ContainerdNotFound, within the block too."""
        async with (
            self._channel.stream(
                f"{_CONTENT}/Read",
                # A size of 0 would mean the rest.
                content_pb2.ReadContentRequest(digest=digest, offset=start, size=max(1, end - start)),
                content_pb2.ReadContentResponse,
                action=f"read content {digest}",
            ) as answers,
            aclosing(answer.data async for answer in answers) as blocks,
        ):
            yield blocks

    async def label_content(self, digest: str, labels: Mapping[str, str]) -> None:
        """Set these labels of a blob and leave its others as they are."""
        await self._channel.unary(
            f"{_CONTENT}/Update",
            content_pb2.UpdateRequest(
                info=content_pb2.Info(digest=digest, labels=labels),
                update_mask=field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels]),
            ),
            content_pb2.UpdateResponse,
            action=f"label content {digest}",
        )

    async def write_content(
        self,
        ref: str,
        *,
        digest: str,
        size: int,
        labels: Mapping[str, str],
        source: Source,
    ) -> bool:
        """Store a blob of `size` bytes from `source`; containerd checks `digest`. False if it was there.

        An interrupted write under the same `ref` goes on where it stopped.

        Raises ContentLocked while another client writes under `ref`, and ContainerdRefused with
        code FAILED_PRECONDITION when the bytes are not those of `digest`.
        """
        action = f"store content {digest}"
        try:
            async with self._channel.duplex(
                f"{_CONTENT}/Write",
                content_pb2.WriteContentRequest,
                content_pb2.WriteContentResponse,
                action=action,
            ) as call:
                await send_blob(call, ref, digest, size, labels, source)
        except ContainerdAlreadyExists:
            return False
        except ContainerdRefused as error:
            if error.code == "UNAVAILABLE":
                raise ContentLocked(action, code=error.code, details=error.details) from error
            if error.code == "FAILED_PRECONDITION":
                await self._abort_content(ref)  # or the next attempt would go on from wrong bytes
            raise
        return True

    async def _abort_content(self, ref: str) -> None:
        with suppress(ContainerdNotFound):
            await self._channel.unary(
                f"{_CONTENT}/Abort",
                content_pb2.AbortRequest(ref=ref),
                empty_pb2.Empty,
                action=f"abort the write of {ref}",
            )

    # Images

    async def put_image(self, image: Image) -> None:
        """Create the record, or point one that is there at the new target; its other labels stay."""
        record = images_pb2.Image(name=image.name, labels=image.labels, target=_descriptor(image.target))
        try:
            await self._channel.unary(
                f"{_IMAGES}/Create",
                images_pb2.CreateImageRequest(image=record),
                images_pb2.CreateImageResponse,
                action=f"create image {image.name}",
            )
        except ContainerdAlreadyExists:
            paths = ["target", *(f"labels.{key}" for key in image.labels)]
            await self._channel.unary(
                f"{_IMAGES}/Update",
                images_pb2.UpdateImageRequest(
                    image=record, update_mask=field_mask_pb2.FieldMask(paths=paths)
                ),
                images_pb2.UpdateImageResponse,
                action=f"update image {image.name}",
            )

    async def image(self, name: str) -> Image | None:
        """The image record, or None."""
        try:
            answer = await self._channel.unary(
                f"{_IMAGES}/Get",
                images_pb2.GetImageRequest(name=name),
                images_pb2.GetImageResponse,
                action=f"look up image {name}",
            )
        except ContainerdNotFound:
            return None
        target = answer.image.target
        return Image(
            name=answer.image.name,
            target=Descriptor(target.media_type, target.digest, target.size, dict(target.annotations)),
            labels=dict(answer.image.labels),
        )

    # Snapshots

    async def stat_snapshot(self, snapshotter: str, key: str) -> SnapshotInfo | None:
        """The snapshot of that name or key, or None. Raises SnapshotterUnreachable."""
        try:
            answer = await self._snapshots(
                "Stat",
                snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=key),
                snapshots_pb2.StatSnapshotResponse,
                action=f"look up snapshot {key}",
            )
        except ContainerdNotFound:
            return None
        info = answer.info
        return SnapshotInfo(info.name, info.parent, SnapshotKind(info.kind), dict(info.labels))

    async def prepare(
        self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        """Begin an active snapshot and return its mounts.

        Raises ContainerdAlreadyExists when a snapshotter made the whole snapshot itself, by the
        label `containerd.io/snapshot.ref`, and SnapshotterUnreachable.
        """
        answer = await self._snapshots(
            "Prepare",
            snapshots_pb2.PrepareSnapshotRequest(
                snapshotter=snapshotter, key=key, parent=parent, labels=labels
            ),
            snapshots_pb2.PrepareSnapshotResponse,
            action=f"prepare snapshot {key}",
        )
        return tuple(
            Mount(mount.type, mount.source, mount.target, tuple(mount.options)) for mount in answer.mounts
        )

    async def commit(self, snapshotter: str, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make the active snapshot `key` the committed snapshot `name`.

        Raises ContainerdAlreadyExists where `name` is taken, and SnapshotterUnreachable.
        """
        await self._snapshots(
            "Commit",
            snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, key=key, name=name, labels=labels),
            empty_pb2.Empty,
            action=f"commit snapshot {name}",
        )

    async def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot; one that is gone already is no error. Raises SnapshotterUnreachable."""
        with suppress(ContainerdNotFound):
            await self._snapshots(
                "Remove",
                snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key),
                empty_pb2.Empty,
                action=f"remove snapshot {key}",
            )

    async def _snapshots(
        self, method: str, request: _SnapshotRequest, response: type[ResponseT], *, action: str
    ) -> ResponseT:
        """A call that containerd passes on to a snapshotter, which may just have been restarted."""
        deadline = anyio.current_time() + self._patience
        while True:
            try:
                return await self._channel.unary(f"{_SNAPSHOTS}/{method}", request, response, action=action)
            except ContainerdRefused as error:
                if error.code != "UNAVAILABLE":
                    raise
                if anyio.current_time() > deadline:
                    raise SnapshotterUnreachable(request.snapshotter, details=error.details) from error
                await anyio.sleep(_RECONNECT_POLL)

    # Diffs

    async def apply(self, layer: Descriptor, mounts: Sequence[Mount]) -> str:
        """Unpack a layer in the content store onto `mounts`; returns the digest of its uncompressed tar."""
        request = diff_pb2.ApplyRequest(
            diff=_descriptor(layer),
            mounts=[
                diff_pb2.Mount(
                    type=mount.type, source=mount.source, target=mount.target, options=mount.options
                )
                for mount in mounts
            ],
        )
        answer = await self._channel.unary(
            f"{_DIFF}/Apply", request, diff_pb2.ApplyResponse, action=f"unpack layer {layer.digest}"
        )
        return answer.applied.digest


@asynccontextmanager
async def connect(
    address: str, namespace: str, *, patience: float = RECONNECT_SECONDS
) -> AsyncIterator[ContainerdClient]:
    """A client of the containerd at the socket `address`, after a first answer from it.

    Raises ContainerdUnreachable.
    """
    async with open_channel(address, namespace) as channel:
        client = ContainerdClient(channel, patience=patience)
        await client.version()
        yield client


def _descriptor(descriptor: Descriptor) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=descriptor.annotations,
    )
