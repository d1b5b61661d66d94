"""Putting an image's blobs into containerd's content store, with the labels that keep them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio

from snapshotter.containerd.client import ContainerdClient
from snapshotter.containerd.errors import ContainerdRefused, ContentLocked
from snapshotter.containerd.image import Document, PullableImage, WrongLayer
from snapshotter.containerd.labels import index_labels, manifest_labels, source_labels
from snapshotter.containerd.sending import Source
from snapshotter.containerd.types import Descriptor

_LOCK_POLL = 0.2  # seconds between looks at a blob that another client writes


class ImageBlobs:
    """The blobs of one image; `downloaded` counts the bytes of layers that came from its registry."""

    def __init__(self, client: ContainerdClient, image: PullableImage) -> None:
        self.downloaded = 0
        self._client = client
        self._image = image

    async def store_documents(self) -> None:
        """Store index, manifest and config. Raises ContainerdError."""
        image = self._image
        layers = [layer.digest for layer in image.layers]
        if image.index is not None:
            await self._store_document("index", image.index, index_labels(image.siblings))
        manifest = manifest_labels(image.config.descriptor.digest, layers)
        await self._store_document("manifest", image.manifest, manifest)
        await self._store_document("config", image.config, {})

    async def store_layer(self, layer: Descriptor, received: Callable[[int], None]) -> None:
        """Download a layer into the store; `received` is told how many of its bytes are there.

        Raises WrongLayer, ContainerdError, and what the image's `open_layer` raises.
        """

        @asynccontextmanager
        async def layer_from(offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async with self._image.open_layer(layer, offset) as blocks:
                yield self._counted(blocks, offset, received)

        try:
            await self._store(f"layer-{layer.digest}", layer, {}, layer_from)
        except ContainerdRefused as error:
            if error.code != "FAILED_PRECONDITION":
                raise
            raise WrongLayer(
                f"layer {layer.digest} of {self._image.name}: {self._image.host} sent other bytes than that "
                f"({error.details}): pull again, and look at the registry if it stays so"
            ) from error

    async def _store_document(self, kind: str, document: Document, labels: Mapping[str, str]) -> None:
        @asynccontextmanager
        async def content_from(offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
            async def rest() -> AsyncIterator[bytes]:
                yield document.content[offset:]

            yield rest()

        descriptor = document.descriptor
        await self._store(f"{kind}-{descriptor.digest}", descriptor, labels, content_from)

    async def _store(
        self, ref: str, descriptor: Descriptor, labels: Mapping[str, str], source: Source
    ) -> None:
        """Store a blob with its labels, after any other client that writes it now."""
        image, digest = self._image, descriptor.digest
        while True:
            try:
                written = await self._client.write_content(
                    ref,
                    digest=digest,
                    size=descriptor.size,
                    labels={**labels, **source_labels(image.host, image.repository, {})},
                    source=source,
                )
                break
            except ContentLocked:
                await anyio.sleep(_LOCK_POLL)
        if not written:
            info = await self._client.content_info(digest)
            existing = info.labels if info is not None else {}
            labels = {**labels, **source_labels(image.host, image.repository, existing)}
            await self._client.label_content(digest, labels)

    async def _counted(
        self, blocks: AsyncIterator[bytes], offset: int, received: Callable[[int], None]
    ) -> AsyncIterator[bytes]:
        async for block in blocks:
            offset += len(block)
            self.downloaded += len(block)
            received(offset)
            yield block
