"""A conversion from one named place to another, as the commands want it. On asyncio's event loop."""

from __future__ import annotations

import os
from dataclasses import dataclass

from anyio import to_thread

from fetcher.convert import Compressors, ConvertedLayer, LayerOptions
from fetcher.errors import InvalidReference
from fetcher.images.naming import LayerPlace, Place
from fetcher.images.writing import reading
from fetcher.manifest import Descriptor, Platform
from fetcher.settings import RegistrySettings
from fetcher.sources import BlobSources
from snapshotter.convert.destinations import open_destination
from snapshotter.convert.image import ConvertedImage, convert_image
from snapshotter.convert.layer_file import convert_layer_file
from snapshotter.convert.progress import ConvertProgress, LayerState
from snapshotter.convert.scratch import scratch_directory
from snapshotter.convert.source_image import OptionsFor
from snapshotter.image_places import Containerd, open_image


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What to convert, and how; `platform` None is this machine's.

    `options_for` decides for an image's layers, `options` are for a source that is one layer.
    """

    source: Place
    destination: Place
    options_for: OptionsFor
    options: LayerOptions
    platform: Platform | None = None
    all_platforms: bool = False
    settings: RegistrySettings
    plain_http: bool = False
    containerd: Containerd


async def run_conversion(
    conversion: Conversion, *, compressors: Compressors, progress: ConvertProgress
) -> ConvertedImage | ConvertedLayer:
    """Convert; nothing stays of it but the destination, and that only if it is finished.

    Raises DestinationUnusable before anything is done; any other FetchError or SnapshotterError.
    """
    with scratch_directory() as scratch:
        if isinstance(conversion.source, LayerPlace):
            return await _convert_file(conversion, conversion.source, compressors, scratch, progress)
        async with BlobSources(conversion.settings) as registries:
            destination = await open_destination(
                conversion.destination,
                source=conversion.source,
                registries=registries,
                plain_http=conversion.plain_http,
                containerd=conversion.containerd,
                platform=conversion.platform,
                sent=progress.sent,
            )
            source = open_image(
                conversion.source,
                registries=registries,
                plain_http=conversion.plain_http,
                containerd=conversion.containerd,
            )
            async with destination, source:
                return await convert_image(
                    source,
                    destination,
                    options_for=conversion.options_for,
                    platform=conversion.platform,
                    all_platforms=conversion.all_platforms,
                    compressors=compressors,
                    scratch=scratch,
                    progress=progress,
                )


async def _convert_file(
    conversion: Conversion,
    source: LayerPlace,
    compressors: Compressors,
    scratch: str,
    progress: ConvertProgress,
) -> ConvertedLayer:
    if not isinstance(conversion.destination, LayerPlace):
        raise InvalidReference(
            f"{source} is one layer, and {conversion.destination} would be an image: name a file to write to"
        )
    whole = Descriptor("", await to_thread.run_sync(_size, source.path), "", {})
    progress.layers([whole])
    progress.state(0, LayerState.CONVERTING, whole)
    layer = await convert_layer_file(
        source.path,
        conversion.destination.path,
        conversion.options,
        compressors=compressors,
        scratch=scratch,
        done=lambda count: progress.done(0, count),
    )
    progress.state(0, LayerState.CONVERTED, Descriptor(layer.digest, layer.size, "", {}))
    return layer


def _size(path: str) -> int:
    with reading(path):
        return os.stat(path).st_size
