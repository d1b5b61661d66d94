"""Where the mounter's blobs come from. The registry client is loaded at the first need, not before."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread

from fetcher.settings import RegistrySettings
from fetcher.store import LayerRecord, RegistrySource, Source

if TYPE_CHECKING:
    from fetcher.blob import Blob
    from fetcher.sources import BlobSources

_CONNECTED_SECONDS: Final = 30.0
"""Less than a connection is kept that nobody uses."""


class Blobs:
    """Opens blobs by their source. Belongs to the event loop; `aclose` ends all connections."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._sources: BlobSources | None = None
        self._opening = anyio.Lock()
        self._connected: dict[str, float] = {}

    def configure(self, settings: RegistrySettings) -> None:
        """Take new settings for blobs opened from now on; what is under way goes on as it began."""
        if settings != self._settings:
            self._settings = settings
            if self._sources is not None:
                self._sources.configure(settings)

    async def open(self, source: Source, record: LayerRecord) -> Blob:
        """The blob of `record` at `source`. Raises FetchError."""
        async with self._opening:
            if self._sources is None:
                await to_thread.run_sync(import_module, "fetcher.sources")
                from fetcher.sources import BlobSources  # no cost: it has just been loaded, in a thread

                self._sources = await BlobSources(self._settings).__aenter__()
        return await self._sources.blob(source, record)

    async def connect(self, record: LayerRecord) -> None:
        """Have a connection and a token for the registry that a blob comes from. Raises FetchError.

        One byte of the blob is asked for. A connection made when it is needed, while a stream fills the
        link, may lose its first packet, and the system tries again only after a second.
        """
        source = next((one for one in record.sources if isinstance(one, RegistrySource)), None)
        if source is None or self._connected.get(source.reference, 0) > anyio.current_time():
            return
        self._connected = {name: end for name, end in self._connected.items() if end > anyio.current_time()}
        self._connected[source.reference] = anyio.current_time() + _CONNECTED_SECONDS
        blob = await self.open(source, record)
        await blob.read(0, 1)

    async def aclose(self) -> None:
        """Close every client that was made."""
        if self._sources is not None:
            await self._sources.__aexit__(None, None, None)
