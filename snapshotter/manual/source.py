"""What the user names as SOURCE: an image in a registry or in an OCI layout, or the file of one layer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from anyio import to_thread

from fetcher.blob import Blob, FileBlob, RegistryBlob
from fetcher.errors import SourceNotFound
from fetcher.images.choosing import choose_image
from fetcher.images.layout_index import blob_name
from fetcher.images.layout_source import LayoutImageSource
from fetcher.images.naming import LAYOUT, LayoutPlace, is_path, not_a_file, split_layout
from fetcher.manifest import LayerDescriptor, Manifest, Platform
from fetcher.oci_layout import LayoutDirectory
from fetcher.reference import parse_reference
from fetcher.sources import BlobSources
from fetcher.store import FileSource, RegistrySource, Source
from snapshotter.manual.errors import NoSuchLayer

_LONGEST_NUMBER = 4
"""Digits of a layer's number; a longer word is the beginning of a digest."""
_SHORTEST_PREFIX = 6


@dataclass(frozen=True, slots=True)
class SourceLayer:
    """One layer of what was named; `number` counts from 1, the lowest.

    `digest` and `size` are None for a file that was named itself. `toc_digest` is what the image promises.
    """

    number: int
    digest: str | None
    size: int | None
    toc_digest: str | None
    source: Source
    blob: Blob


@dataclass(frozen=True, slots=True)
class SourceImage:
    """The layers from the bottom up; `name` is what the cache remembers of where they came from."""

    name: str
    layers: tuple[SourceLayer, ...]


def absolute_source(text: str) -> str:
    """SOURCE with its path made absolute, so that it means the same to a process that runs elsewhere.

    What is a path, and what the name of an image, is decided as for every other command.
    """
    if text.startswith(LAYOUT):
        directory, tag = split_layout(text.removeprefix(LAYOUT))
        return str(LayoutPlace(os.path.abspath(directory), tag))
    if is_path(text):
        return os.path.abspath(text)
    return str(parse_reference(text))


async def resolve_source(
    text: str, platform: Platform, sources: BlobSources, *, plain_http: bool
) -> SourceImage:
    """The layers of an absolute SOURCE. Raises FetchError."""
    if text.startswith(LAYOUT):
        return await _from_layout(text, platform)
    if text.startswith("/"):
        return _from_file(text)
    return await _from_registry(text, platform, sources, plain_http=plain_http)


def pick_layer(image: SourceImage, wanted: str) -> SourceImage:
    """The image reduced to one layer. Raises NoSuchLayer; see `layer_index`."""
    index = layer_index(image.name, [layer.digest for layer in image.layers], wanted)
    return SourceImage(image.name, (image.layers[index],))


def layer_index(image: str, digests: Sequence[str | None], wanted: str) -> int:
    """Which layer is `wanted`, by number (1 is the lowest) or by digest or its beginning; from 0 on.

    Raises NoSuchLayer.
    """
    count = len(digests)
    if wanted.isdecimal() and len(wanted) <= _LONGEST_NUMBER:
        if not 1 <= int(wanted) <= count:
            raise NoSuchLayer(f"{image} has no layer {wanted}: it has {count}, the lowest is 1")
        return int(wanted) - 1
    digits = wanted.removeprefix("sha256:")
    found = {
        digest: index
        for index, digest in reversed(list(enumerate(digests)))
        if digest is not None and digest.removeprefix("sha256:").startswith(digits)
    }
    if not found or len(digits) < _SHORTEST_PREFIX:
        raise NoSuchLayer(f"{image} has no layer with digest {wanted}")
    if len(found) > 1:
        raise NoSuchLayer(f"{image} has several layers whose digest begins with {wanted}")
    return next(iter(found.values()))


async def _from_registry(
    text: str, platform: Platform, sources: BlobSources, *, plain_http: bool
) -> SourceImage:
    reference = parse_reference(text)
    client = await sources.client(reference, plain_http=plain_http)
    image = await client.manifest(reference, platform=platform)
    return SourceImage(
        text,
        tuple(
            _layer(
                number,
                layer,
                RegistrySource(text, plain_http),
                RegistryBlob(client, reference, layer.digest, layer.size),
            )
            for number, layer in enumerate(image.layers, start=1)
        ),
    )


async def _from_layout(text: str, platform: Platform) -> SourceImage:
    directory, tag = split_layout(text.removeprefix(LAYOUT))
    chosen = await choose_image(LayoutImageSource(directory, tag), platform)
    layers = await to_thread.run_sync(_layout_layers, directory, chosen.parsed)
    return SourceImage(text, layers)


def _layout_layers(directory: str, manifest: Manifest) -> tuple[SourceLayer, ...]:
    files = LayoutDirectory(directory)
    layers = []
    for number, layer in enumerate(manifest.layers, start=1):
        path = files.path(blob_name(layer.digest))
        if not os.path.isfile(path):
            raise SourceNotFound(f"{directory} lacks layer {number}, {layer.digest}")
        layers.append(_layer(number, layer, FileSource(path), FileBlob(path)))
    return tuple(layers)


def _from_file(path: str) -> SourceImage:
    if not os.path.isfile(path):
        raise not_a_file(path)
    return SourceImage(path, (SourceLayer(1, None, None, None, FileSource(path), FileBlob(path)),))


def _layer(number: int, layer: LayerDescriptor, source: Source, blob: Blob) -> SourceLayer:
    return SourceLayer(number, layer.digest, layer.size, layer.toc_digest, source, blob)
