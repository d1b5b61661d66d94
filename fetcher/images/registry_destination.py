"""Writing an image to a registry: blobs and the manifests below first, the tag last."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Self

import anyio
from anyio import to_thread

from fetcher.content import BytesContent, FileContent
from fetcher.errors import InvalidReference
from fetcher.images.writing import reading
from fetcher.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Document
from fetcher.push import RepositoryPush
from fetcher.reference import Reference
from fetcher.registry import RegistryClient

Sent = Callable[[str, int], None]
"""Told a blob's digest and how many of its bytes have been sent; a failure sets that back."""

_ENDING_SECONDS: Final = 5.0
_DOCUMENTS: Final = INDEX_TYPES | MANIFEST_TYPES


class RegistryDestination:
    """The tag of `reference`, pushed through `client`, which is the caller's.

    `source` is where the image comes from: if that is the same registry, blobs are mounted from there.
    """

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        *,
        source: Reference | None = None,
        sent: Sent = lambda digest, count: None,
    ) -> None:
        if reference.digest is not None or reference.tag is None:
            raise InvalidReference(f"{reference}: an image is pushed to a tag, and its digest comes of it")
        self._reference = reference
        self._tag = reference.tag
        self._push = RepositoryPush(client, reference)
        near = source is not None and source.host == reference.host
        self._neighbour = source.repository if source is not None and near else None
        self._sent = sent

    @property
    def name(self) -> str:
        """See ImageDestination."""
        return str(self._reference)

    async def __aenter__(self) -> Self:
        """Raises RegistryError if the registry does not let us push."""
        await self._push.require_access()
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.move_on_after(_ENDING_SECONDS, shield=True):
            await self._push.cancel_uploads()

    async def has(self, descriptor: Descriptor) -> bool:
        """See ImageDestination; a blob of the source's is mounted from there. Raises RegistryError."""
        if descriptor.media_type in _DOCUMENTS:
            return False
        if await self._push.has_blob(descriptor.digest):
            return True
        if self._neighbour in (None, self._reference.repository):
            return False
        assert self._neighbour is not None
        return await self._push.mount_blob(descriptor.digest, self._neighbour)

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        """See ImageDestination; uploads by chunks, and resumes."""
        fd = await to_thread.run_sync(_opened, path)
        try:
            await self._upload(descriptor, FileContent(fd, descriptor.size))
        finally:
            os.close(fd)

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """See ImageDestination."""
        if descriptor.media_type in _DOCUMENTS:
            document = Document(descriptor.digest, descriptor.media_type, data)
            await self._push.put_manifest(document, descriptor.digest)
        else:
            await self._upload(descriptor, BytesContent(data))

    async def finish(self, root: Document) -> None:
        """See ImageDestination."""
        await self._push.put_manifest(root, self._tag)

    async def _upload(self, descriptor: Descriptor, content: BytesContent | FileContent) -> None:
        digest = descriptor.digest
        await self._push.upload(digest, content, sent=lambda count: self._sent(digest, count))


def _opened(path: str) -> int:
    with reading(path):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
