"""From a SRC to the layers behind it, opened for reading: those of an image, or the one of a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import to_thread

from fetcher.blob import Blob, FileBlob
from fetcher.images.choosing import choose_image
from fetcher.images.naming import LayerPlace, parse_place
from fetcher.manifest import Platform
from fetcher.sources import BlobSources
from snapshotter.image_places import Containerd, open_image


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """A layer; `number` counts from 1, the lowest.

    `digest`, `size` (bytes) and `media_type` are what the manifest says, None for a file that was named
    itself. `toc_digest` is what the manifest promises.
    """

    number: int
    digest: str | None
    size: int | None
    media_type: str | None
    toc_digest: str | None
    blob: Blob


@dataclass(frozen=True, slots=True)
class SourceLayers:
    """The layers of what `name` names, from the bottom up; `manifest` is a digest, None for one layer."""

    name: str
    manifest: str | None
    layers: tuple[SourceLayer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """How to get at what is named; without a platform, what there is for this machine."""

    platform: Platform | None
    plain_http: bool
    containerd: Containerd


@asynccontextmanager
async def opened_layers(text: str, registries: BlobSources, looking: Looking) -> AsyncIterator[SourceLayers]:
    """The layers of SRC, readable within the block. Raises FetchError, ContainerdError."""
    place = await to_thread.run_sync(parse_place, text)
    if isinstance(place, LayerPlace):
        yield SourceLayers(text, None, (SourceLayer(1, None, None, None, None, FileBlob(place.path)),))
        return
    source = open_image(
        place, registries=registries, plain_http=looking.plain_http, containerd=looking.containerd
    )
    async with source:
        chosen = await choose_image(source, looking.platform)
        layers = tuple(
            SourceLayer(
                number, layer.digest, layer.size, layer.media_type, layer.toc_digest, source.blob(layer)
            )
            for number, layer in enumerate(chosen.parsed.layers, start=1)
        )
        yield SourceLayers(text, chosen.manifest.digest, layers)
