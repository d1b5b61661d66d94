"""Pulling an image through containerd's API, so that a remote snapshotter may make its layers lazily.

containerd 1.6 and 1.7 download every layer before their own client asks a snapshotter for
anything. This pull asks first: index, manifest and config go into the content store, then
each layer is prepared from the bottom up with the labels that a remote snapshotter needs.
A layer that it makes by itself needs no download; any other is downloaded and unpacked by
containerd as usual. A lease keeps everything until the image record does.

Runs on asyncio's event loop. Cancelled or failed, a pull leaves no active snapshot and no lease.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio

from snapshotter.containerd.blobs import ImageBlobs
from snapshotter.containerd.client import ContainerdClient
from snapshotter.containerd.downloads import Downloads
from snapshotter.containerd.errors import (
    ContainerdAlreadyExists,
    ContainerdError,
    ContainerdRefused,
)
from snapshotter.containerd.image import PullableImage, WrongLayer
from snapshotter.containerd.labels import (
    CRI_MANAGED,
    UNCOMPRESSED,
    chain_ids,
    config_labels,
    may_be_lazy,
    snapshot_labels,
)
from snapshotter.containerd.progress import LayerState, PullProgress
from snapshotter.containerd.types import Image, Mount
from snapshotter.remote import SNAPSHOT_REF

LEASE_SECONDS = 24 * 3600
DOWNLOADS_AT_ONCE = 3

_PREPARE_ATTEMPTS = 3  # as many as containerd's own unpacker makes
_CLEANUP_LIMIT = 10.0  # seconds for what must be done after a failure or a cancellation

# Snapshotters that are built into containerd: none of them makes a layer by itself.
_ORDINARY = frozenset({"overlayfs", "native", "btrfs", "zfs", "devmapper", "blockfile", "erofs"})

# CRI's namespace: its image service finds an image by config digest, by name and by digest.
_CRI_NAMESPACE = "k8s.io"


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did: where each layer ended, and the layer bytes that it downloaded itself."""

    image: PullableImage
    states: tuple[LayerState, ...]
    downloaded: int

    def count(self, state: LayerState) -> int:
        """How many layers ended in `state`."""
        return self.states.count(state)


def lazy_expected(snapshotter: str, annotations: Mapping[str, str]) -> bool:
    """Whether `snapshotter` may make a layer with these annotations by itself."""
    return snapshotter not in _ORDINARY and may_be_lazy(annotations)


async def pull_image(
    client: ContainerdClient,
    image: PullableImage,
    *,
    snapshotter: str,
    progress: PullProgress,
) -> PullResult:
    """Pull `image` into the client's namespace and onto `snapshotter`.

    `snapshotter` is one that containerd has (`ContainerdClient.require_snapshotter`).

    Raises ContainerdError, WrongLayer, and what `image.open_layer` raises.
    """
    progress.layers(image.layers)
    async with client.leased(LEASE_SECONDS) as leased:
        pull = _Pull(leased, image, snapshotter, progress)
        async with pull.downloads:
            await pull.blobs.store_documents()
            await pull.build_chain()
        await pull.record()
    return PullResult(image, tuple(pull.states), pull.blobs.downloaded)


class _Pull:
    """One pull under a lease."""

    def __init__(
        self, client: ContainerdClient, image: PullableImage, snapshotter: str, progress: PullProgress
    ) -> None:
        self.states = [LayerState.WAITING] * len(image.layers)
        self.blobs = ImageBlobs(client, image)
        self.downloads = Downloads(self._download, limit=DOWNLOADS_AT_ONCE)
        self._client = client
        self._image = image
        self._snapshotter = snapshotter
        self._progress = progress
        self._chain = chain_ids(image.diff_ids)
        self._lazy_expected = [lazy_expected(snapshotter, layer.annotations) for layer in image.layers]

    # The chain of snapshots

    async def build_chain(self) -> None:
        """Make the snapshot of every layer, from the bottom up."""
        missing = await self._first_missing()
        for number in range(missing):
            self._enter(number, LayerState.EXISTS)
        self._download_ahead(missing)
        for number in range(missing, len(self._chain)):
            await self._build(number)

    async def _first_missing(self) -> int:
        """The number of the lowest layer without a snapshot; those below are kept by the lease."""
        for number in reversed(range(len(self._chain))):
            if await self._kept(self._chain[number]):
                return number + 1
        return 0

    async def _kept(self, name: str) -> bool:
        """Whether the committed snapshot is there, and under our lease from now on."""
        if await self._client.stat_snapshot(self._snapshotter, name) is None:
            return False
        await self._client.keep_snapshot(self._snapshotter, name)
        # Garbage collection may have taken it before the lease had it.
        return await self._client.stat_snapshot(self._snapshotter, name) is not None

    async def _build(self, number: int) -> None:
        """Make one layer's snapshot on top of its parent's."""
        chain_id = self._chain[number]
        if self._lazy_expected[number]:
            self._enter(number, LayerState.OPENING)
        for _ in range(_PREPARE_ATTEMPTS):
            key = f"extract-{time.time_ns() % 1_000_000_000}-{secrets.token_urlsafe(3)} {chain_id}"
            async with self._removed_on_failure(key):
                mounts = await self._prepare(number, key)
                if mounts is not None:
                    await self._unpack(number, key, mounts)
                    return
            # containerd has put it under our lease, as it does before it says that a target exists.
            if await self._client.stat_snapshot(self._snapshotter, chain_id) is not None:
                self._settle_lazy(number)
                return
        raise ContainerdRefused(
            f"prepare layer {self._image.layers[number].digest}",
            code="ALREADY_EXISTS",
            details=f"snapshotter {self._snapshotter!r} says that {chain_id} exists, and does not have it",
        )

    async def _prepare(self, number: int, key: str) -> tuple[Mount, ...] | None:
        """Mounts to unpack the layer onto, or None where the snapshotter has the whole layer."""
        image, chain_id = self._image, self._chain[number]
        labels = snapshot_labels(
            chain_id=chain_id,
            reference=image.name,
            manifest_digest=image.manifest.descriptor.digest,
            layers=[layer.digest for layer in image.layers[number:]],
            annotations=image.layers[number].annotations,
        )
        parent = self._chain[number - 1] if number else ""
        try:
            return await self._client.prepare(self._snapshotter, key, parent, labels)
        except ContainerdAlreadyExists:
            return None

    async def _unpack(self, number: int, key: str, mounts: tuple[Mount, ...]) -> None:
        """Download, unpack and commit a layer that the snapshotter does not make by itself."""
        layer, chain_id = self._image.layers[number], self._chain[number]
        if self._lazy_expected[number]:
            # What kept this layer from being lazy will mostly hold for those above it too.
            self._lazy_expected[number:] = [False] * (len(self._chain) - number)
            self._download_ahead(number)
        await self.downloads.wait(layer.digest)
        self._enter(number, LayerState.UNPACKING)
        diff_id = await self._client.apply(layer, mounts)
        if diff_id != self._image.diff_ids[number]:
            raise WrongLayer(
                f"layer {layer.digest} of {self._image.name} unpacks to {diff_id}, its config promises "
                f"{self._image.diff_ids[number]}: the image is damaged, push it anew"
            )
        try:
            await self._client.commit(self._snapshotter, key, chain_id, {SNAPSHOT_REF: chain_id})
        except ContainerdAlreadyExists:  # another client was faster
            await self._client.remove_snapshot(self._snapshotter, key)
            await self._client.keep_snapshot(self._snapshotter, chain_id)
        await self._client.label_content(layer.digest, {UNCOMPRESSED: diff_id})
        self._enter(number, LayerState.UNPACKED)

    def _settle_lazy(self, number: int) -> None:
        self._enter(number, LayerState.LAZY)
        digest = self._image.layers[number].digest
        above = range(number + 1, len(self._chain))
        if not any(self._image.layers[other].digest == digest for other in above):
            self.downloads.drop(digest)

    @asynccontextmanager
    async def _removed_on_failure(self, key: str) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            # One that containerd was still making is left to the garbage collection at the lease's end.
            with anyio.move_on_after(_CLEANUP_LIMIT, shield=True), suppress(ContainerdError):
                await self._client.remove_snapshot(self._snapshotter, key)
            raise

    # Layer blobs

    def _download_ahead(self, lowest: int) -> None:
        """Begin the downloads of all layers from `lowest` up that nobody will make lazily."""
        for layer, lazy in zip(self._image.layers[lowest:], self._lazy_expected[lowest:], strict=True):
            if not lazy:
                self.downloads.start(layer.digest)

    async def _download(self, digest: str) -> None:
        # An image may have a layer more than once, one of them with a snapshot already.
        numbers = [
            number
            for number, layer in enumerate(self._image.layers)
            if layer.digest == digest and self.states[number] in (LayerState.WAITING, LayerState.OPENING)
        ]
        for number in numbers:
            self._enter(number, LayerState.DOWNLOADING)

        def received(done: int) -> None:
            for number in numbers:
                self._progress.received(number, done)

        await self.blobs.store_layer(self._image.layers[numbers[0]], received)
        for number in numbers:
            self._enter(number, LayerState.DOWNLOADED)

    # The image record

    async def record(self) -> None:
        """Tie the topmost snapshot to the config, and create or move the image record."""
        image = self._image
        config = image.config.descriptor.digest
        if self._chain:
            await self._client.label_content(config, config_labels(self._snapshotter, self._chain[-1]))
        if self._client.namespace == _CRI_NAMESPACE:
            names, labels = [config, image.name, image.digest_name], dict([CRI_MANAGED])
        else:
            names, labels = [image.name], {}
        for name in dict.fromkeys(names):
            await self._client.put_image(Image(name, image.target, labels))

    def _enter(self, number: int, state: LayerState) -> None:
        self.states[number] = state
        self._progress.state(number, state)
