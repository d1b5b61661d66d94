"""Where the mounter's blobs come from. The registry client is loaded at the first need, not before."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from fetcher.settings import RegistrySettings
from fetcher.store import LayerRecord, Source

if TYPE_CHECKING:
    from fetcher.blob import Blob
    from fetcher.sources import BlobSources


class Blobs:
    """Opens blobs by their source. Belongs to the event loop; `aclose` ends all connections."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        self._sources: BlobSources | None = None
        self._opening = anyio.Lock()

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

    async def aclose(self) -> None:
        """Close every client that was made."""
        if self._sources is not None:
            await self._sources.__aexit__(None, None, None)
