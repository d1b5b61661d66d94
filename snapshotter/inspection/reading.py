"""Reading all that a command shows of an image, its layers side by side."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from fetcher.errors import FetchError
from fetcher.sources import BlobSources
from snapshotter.errors import SnapshotterError
from snapshotter.inspection.comparing import ReadImage
from snapshotter.inspection.contents import Contents, Format, Progress, read_contents, read_format, read_toc
from snapshotter.inspection.layers import Looking, SourceLayer, SourceLayers, opened_layers
from snapshotter.inspection.summary import ImageRecord, LayerRecord, layer_record
from snapshotter.inspection.verifying import verify_layer
from snapshotter.manual.source import layer_index

T = TypeVar("T")

Begin = Callable[[int], Progress]
"""Told of all the bytes that are about to be read; answers what is to be told of those that came."""

_PARALLEL = os.cpu_count() or 2


async def read_tables(
    text: str,
    registries: BlobSources,
    looking: Looking,
    *,
    layer: str | None,
    entries: bool,
) -> ImageRecord:
    """The tables of contents of SRC, of one `layer` if it is given.

    Raises FetchError, ContainerdError, NoSuchLayer.
    """

    async def read(one: SourceLayer) -> LayerRecord:
        found = await read_format(one)
        return layer_record(one, found, await read_toc(one, found), entries=entries)

    async with opened_layers(text, registries, looking) as image:
        wanted = _wanted(image, layer)
        return ImageRecord(text, image.manifest, await _side_by_side(read, wanted, limit=len(wanted)))


async def verify_tables(
    text: str, registries: BlobSources, looking: Looking, *, layer: str | None, begin: Begin
) -> ImageRecord:
    """The same, with the faults that were found in the blobs. Raises as `read_tables` does."""
    async with opened_layers(text, registries, looking) as image:
        wanted = _wanted(image, layer)
        formats = dict(zip(wanted, await _side_by_side(read_format, wanted, limit=len(wanted)), strict=True))
        progress = begin(sum(found.size for found in formats.values()))

        async def verify(one: SourceLayer) -> LayerRecord:
            return await _verified(one, formats[one], progress)

        return ImageRecord(text, image.manifest, await _side_by_side(verify, wanted, limit=_PARALLEL))


async def read_images(
    texts: Sequence[str], registries: BlobSources, looking: Looking, *, whole: bool, begin: Begin
) -> list[ReadImage]:
    """What is in the layers of several images; a layer that they share is read once.

    `whole` reads each layer's tar, also where there is a table of contents. Raises FetchError,
    ContainerdError.
    """
    known: dict[str, Contents] = {}
    images = []
    for text in texts:
        async with opened_layers(text, registries, looking) as image:
            unknown = {layer.digest or str(layer.number): layer for layer in image.layers}
            new = [layer for digest, layer in unknown.items() if digest not in known]
            progress = begin(sum(layer.size or 0 for layer in new))

            async def read(layer: SourceLayer, progress: Progress = progress) -> Contents:
                return await read_contents(layer, whole=whole, progress=progress)

            found = dict(zip(new, await _side_by_side(read, new, limit=_PARALLEL), strict=True))
            known |= {layer.digest: contents for layer, contents in found.items() if layer.digest}
            layers = [
                dataclasses.replace(known[layer.digest], layer=layer) if layer.digest else found[layer]
                for layer in image.layers
            ]
            images.append(ReadImage(text, image.manifest, layers))
    return images


async def _verified(layer: SourceLayer, found: Format, progress: Progress) -> LayerRecord:
    toc = await read_toc(layer, found)
    faults = await verify_layer(layer, toc, size=found.size, progress=progress)
    return layer_record(layer, found, toc, entries=False, faults=faults)


def _wanted(image: SourceLayers, layer: str | None) -> Sequence[SourceLayer]:
    if layer is None:
        return image.layers
    return [image.layers[layer_index(image.name, [one.digest for one in image.layers], layer)]]


async def _side_by_side(
    read: Callable[[SourceLayer], Awaitable[T]], layers: Sequence[SourceLayer], *, limit: int
) -> list[T]:
    """`read` of each layer, at most `limit` at a time; the first error of ours ends the others."""
    results: dict[int, T] = {}
    errors: list[Exception] = []
    room = anyio.Semaphore(max(1, limit))
    async with anyio.create_task_group() as group:

        async def run(index: int, layer: SourceLayer) -> None:
            async with room:
                try:
                    results[index] = await read(layer)
                except (FetchError, SnapshotterError) as error:
                    errors.append(error)
                    group.cancel_scope.cancel()

        for index, layer in enumerate(layers):
            group.start_soon(run, index, layer)
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(layers))]
