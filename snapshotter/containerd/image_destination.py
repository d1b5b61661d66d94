"""Writing an image to containerd's content store, and its record last.

A lease keeps everything until the record does; the labels that garbage collection follows from the record
are those that containerd's own client writes. Nothing is unpacked.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Self

import anyio
from anyio import to_thread

from fetcher.content import BytesContent, Content, FileContent
from fetcher.images.naming import ContainerdPlace
from fetcher.images.writing import reading
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Document,
    parse_index,
    parse_manifest,
)
from snapshotter.containerd.client import ContainerdClient, connect
from snapshotter.containerd.errors import ContainerdNotFound, ContentLocked
from snapshotter.containerd.labels import index_labels, manifest_labels
from snapshotter.containerd.types import Descriptor as StoredDescriptor
from snapshotter.containerd.types import Image

LEASE_SECONDS: Final = 24 * 3600

_BLOCK: Final = 1 << 20
_LOCK_POLL: Final = 0.2  # seconds between looks at a blob that another client writes

Sent = Callable[[str, int], None]
"""Told a blob's digest and how many of its bytes have been sent."""


class ContainerdDestination:
    """The image `place` of the containerd at the socket `address`. See ImageDestination.

    Runs on asyncio's event loop. Beside FetchError, every method raises ContainerdError.
    """

    def __init__(
        self,
        place: ContainerdPlace,
        *,
        address: str,
        namespace: str,
        sent: Sent = lambda digest, count: None,
    ) -> None:
        self._place = place
        self._address = address
        self._namespace = namespace
        self._sent = sent
        self._stack = AsyncExitStack()
        self._entered: ContainerdClient | None = None

    @property
    def name(self) -> str:
        """See ImageDestination."""
        return str(self._place)

    async def __aenter__(self) -> Self:
        """Raises ContainerdUnreachable."""
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(connect(self._address, self._namespace))
            self._entered = await stack.enter_async_context(client.leased(LEASE_SECONDS))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """What was stored without a record is garbage without its lease, and containerd collects it."""
        self._entered = None
        await self._stack.aclose()

    async def has(self, descriptor: Descriptor) -> bool:
        """See ImageDestination."""
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            return False  # its labels have to be set
        try:
            await self._client.keep_content(descriptor.digest)
        except ContainerdNotFound:  # containerd 2 looks for it; before, one can lease what is not there
            return False
        return await self._client.content_info(descriptor.digest) is not None

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        """See ImageDestination."""
        with reading(path):
            fd = await to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._store(descriptor, FileContent(fd, descriptor.size), {})
        finally:
            os.close(fd)

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """See ImageDestination."""
        document = Document(descriptor.digest, descriptor.media_type, data)
        await self._store(descriptor, BytesContent(data), _labels(document))

    async def finish(self, root: Document) -> None:
        """See ImageDestination."""
        descriptor = Descriptor(root.digest, len(root.data), root.media_type, {})
        await self.put_bytes(descriptor, root.data)
        target = StoredDescriptor(descriptor.media_type, descriptor.digest, descriptor.size)
        await self._client.put_image(Image(str(self._place.reference), target, {}))

    @property
    def _client(self) -> ContainerdClient:
        assert self._entered is not None, "a destination is entered before it is written to"
        return self._entered

    async def _store(self, descriptor: Descriptor, content: Content, labels: Mapping[str, str]) -> None:
        """Store a blob with its labels, after any other client that writes it now."""

        @asynccontextmanager
        async def rest(offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
            yield self._counted(descriptor, content, offset)

        while True:
            try:
                written = await self._client.write_content(
                    f"layergate-{descriptor.digest}",
                    digest=descriptor.digest,
                    size=descriptor.size,
                    labels=labels,
                    source=rest,
                )
                break
            except ContentLocked:
                await anyio.sleep(_LOCK_POLL)
        if not written and labels:
            await self._client.label_content(descriptor.digest, labels)

    async def _counted(self, descriptor: Descriptor, content: Content, offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, content.size, _BLOCK):
            yield await content.read(start, min(content.size, start + _BLOCK))
            self._sent(descriptor.digest, min(content.size, start + _BLOCK))


def _labels(document: Document) -> dict[str, str]:
    """What keeps the blobs that a document names."""
    if document.media_type in INDEX_TYPES:
        entries = parse_index(document.data, types=INDEX_TYPES | MANIFEST_TYPES)
        return index_labels([entry.descriptor.digest for entry in entries])
    if document.media_type in MANIFEST_TYPES:
        manifest = parse_manifest(document.data)
        return manifest_labels(manifest.config.digest, [layer.digest for layer in manifest.layers])
    return {}
