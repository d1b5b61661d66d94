"""An image in containerd's content store, as a source.

containerd keeps no layer for long that a snapshotter made lazily: such an image has its manifest here, and
its layers in the registry alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Self

from fetcher.blob import Blob
from fetcher.errors import FormatError, SourceNotFound, VerificationError
from fetcher.images.naming import ContainerdPlace
from fetcher.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Document, document_type
from fetcher.oci_layout import DOCUMENT_LIMIT
from fetcher.reference import short_digest
from snapshotter.containerd.client import ContainerdClient, connect
from snapshotter.containerd.errors import ContainerdNotFound
from snapshotter.containerd.types import Image


class ContainerdImageSource:
    """Reads the image `place` of the containerd at the socket `address`. See ImageSource.

    Runs on asyncio's event loop. Beside FetchError, every method raises ContainerdError.
    """

    def __init__(self, place: ContainerdPlace, *, address: str, namespace: str) -> None:
        self._place = place
        self._connecting: AbstractAsyncContextManager[ContainerdClient] = connect(address, namespace)
        self._entered: ContainerdClient | None = None

    @property
    def name(self) -> str:
        """See ImageSource."""
        return str(self._place)

    async def __aenter__(self) -> Self:
        """Raises ContainerdUnreachable."""
        self._entered = await self._connecting.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._connecting.__aexit__(None, None, None)
        self._entered = None

    async def root(self) -> Document:
        """See ImageSource. The image of the name as it was given, or else of the name in full."""
        image = await self._image()
        target = image.target
        return await self.document(
            Descriptor(target.digest, target.size, target.media_type, dict(target.annotations))
        )

    async def document(self, descriptor: Descriptor) -> Document:
        """See ImageSource. Raises SourceNotFound, FormatError, VerificationError."""
        digest = descriptor.digest
        if descriptor.size > DOCUMENT_LIMIT:
            raise FormatError(f"{self.name}: {digest} has {descriptor.size} bytes, and is no image document")
        data = await ContainerdBlob(self._client, self.name, digest, descriptor.size).read(0, descriptor.size)
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise VerificationError(f"{self.name}: containerd has other content than that of {digest}")
        media_type = descriptor.media_type
        if media_type in INDEX_TYPES | MANIFEST_TYPES:
            try:
                media_type = document_type(data, media_type)
            except FormatError as error:
                raise FormatError(f"{self.name}: {short_digest(digest)}: {error}") from error
        return Document(digest, media_type, data)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See ImageSource."""
        return ContainerdBlob(self._client, self.name, descriptor.digest, descriptor.size)

    @property
    def _client(self) -> ContainerdClient:
        assert self._entered is not None, "a source is entered before it is read"
        return self._entered

    async def _image(self) -> Image:
        client = self._client
        for name in dict.fromkeys((self._place.name, str(self._place.reference))):
            image = await client.image(name)
            if image is not None:
                return image
        raise SourceNotFound(
            f"containerd has no image {self._place.reference} in its namespace {client.namespace}"
        )


class ContainerdBlob:
    """A blob in the content store. See Blob; raises ContainerdError too."""

    def __init__(self, client: ContainerdClient, image: str, digest: str, size: int) -> None:
        self._client = client
        self._image = image
        self._digest = digest
        self._size = size

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """See Blob. Raises SourceNotFound for one that containerd does not have."""
        if end > self._size:
            raise FormatError(f"{self._image}: {self._digest} has {self._size} bytes, and no byte {end - 1}")
        try:
            async with aclosing(self._blocks(start, end)) as blocks:
                yield blocks
        except ContainerdNotFound as error:
            raise SourceNotFound(
                f"{self._image}: containerd does not have the content {self._digest}: "
                "layers that were pulled lazily are in the registry alone"
            ) from error

    async def read(self, start: int, end: int) -> bytes:
        """See Blob."""
        async with self.stream(start, end) as blocks:
            return b"".join([block async for block in blocks])

    async def tail(self, length: int) -> tuple[bytes, int]:
        """See Blob."""
        return await self.read(max(0, self._size - length), self._size), self._size

    async def _blocks(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        position = start
        if start == end:
            return
        async with self._client.read_content(self._digest, start, end) as blocks:
            async for block in blocks:
                position += len(block)
                yield block
        if position != end:
            raise FormatError(f"{self._image}: {self._digest} ends at byte {position}, before byte {end}")
