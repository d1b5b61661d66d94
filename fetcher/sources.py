"""From a layer's recorded sources to blobs that can be read, over shared registry clients."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec

from fetcher.blob import Blob, FileBlob, RegistryBlob
from fetcher.credentials import CredentialStore
from fetcher.exchange import CountRequest
from fetcher.reference import Reference, parse_reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from fetcher.store import FileSource, LayerRecord, Source


class BlobSources:
    """Opens blobs by their source; an async context manager that owns the registry clients.

    Clients are made when they are first needed, so a process that reads files alone never makes one.
    A host that was pulled from with plain HTTP by explicit wish has a client of its own, so that the
    wish holds for that host alone.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        *,
        receive_buffer: int | None = None,
        on_request: CountRequest | None = None,
    ) -> None:
        self._settings = settings
        self._receive_buffer = receive_buffer
        self._on_request = on_request
        self._clients: dict[str, RegistryClient] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, value, trace)

    def configure(self, settings: RegistrySettings) -> None:
        """Use new settings from the next client on; running transfers keep theirs."""
        self._settings = settings
        self._clients.clear()

    async def client(self, reference: Reference, *, plain_http: bool = False) -> RegistryClient:
        """The client to talk to the reference's registry with."""
        key = reference.host if plain_http else ""
        client = self._clients.get(key)
        if client is None:
            settings = self._settings
            if plain_http:
                host = msgspec.structs.replace(settings.host(key), plain_http=True)
                settings = msgspec.structs.replace(settings, hosts={**settings.hosts, key: host})
            client = RegistryClient(
                settings,
                CredentialStore(settings.docker_config),
                receive_buffer=self._receive_buffer,
                on_request=self._on_request,
            )
            self._clients[key] = await self._stack.enter_async_context(client)
        return client

    async def blob(self, source: Source, record: LayerRecord) -> Blob:
        """The blob of `record` at `source`; raises InvalidReference if the source names none."""
        if isinstance(source, FileSource):
            return FileBlob(source.path)
        reference = parse_reference(source.reference)
        client = await self.client(reference, plain_http=source.plain_http)
        return RegistryBlob(client, reference, record.digest, record.size)
