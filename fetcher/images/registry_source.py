"""An image in a registry, as a source."""

from __future__ import annotations

from typing import Self

from fetcher.blob import Blob, RegistryBlob
from fetcher.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Document
from fetcher.oci_layout import DOCUMENT_LIMIT
from fetcher.reference import Reference
from fetcher.registry import RegistryClient
from fetcher.sources import BlobSources


class RegistryImageSource:
    """Reads what `reference` names, with a client of `registries`. See ImageSource."""

    def __init__(self, reference: Reference, registries: BlobSources, *, plain_http: bool = False) -> None:
        self._reference = reference
        self._registries = registries
        self._plain_http = plain_http
        self._entered: RegistryClient | None = None

    @property
    def name(self) -> str:
        """See ImageSource."""
        return str(self._reference)

    async def __aenter__(self) -> Self:
        self._entered = await self._registries.client(self._reference, plain_http=self._plain_http)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._entered = None

    async def root(self) -> Document:
        """See ImageSource. Raises RegistryError, FormatError, VerificationError."""
        return await self._client.document(self._reference)

    async def document(self, descriptor: Descriptor) -> Document:
        """See ImageSource. Raises RegistryError, FormatError, VerificationError."""
        if descriptor.media_type in INDEX_TYPES | MANIFEST_TYPES:
            return await self._client.document(self._reference, descriptor.digest)
        data = await self._client.blob_bytes(self._reference, descriptor.digest, limit=DOCUMENT_LIMIT)
        return Document(descriptor.digest, descriptor.media_type, data)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See ImageSource."""
        return RegistryBlob(self._client, self._reference, descriptor.digest, descriptor.size)

    @property
    def _client(self) -> RegistryClient:
        assert self._entered is not None, "a source is entered before it is read"
        return self._entered
