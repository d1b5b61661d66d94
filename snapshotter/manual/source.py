"""What the user names as SOURCE: an image in a registry or in an OCI layout, or the file of one layer."""

from __future__ import annotations

import os
from dataclasses import dataclass

from anyio import to_thread

from fetcher.blob import Blob, FileBlob, RegistryBlob
from fetcher.errors import SourceNotFound
from fetcher.manifest import LayerDescriptor, Platform
from fetcher.oci_layout import OciLayout, split_layout
from fetcher.reference import parse_reference
from fetcher.sources import BlobSources
from fetcher.store import FileSource, RegistrySource, Source
from snapshotter.manual.errors import NoSuchLayer

_LAYOUT = "oci:"
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

    A name that is a file or directory here, or begins like a path, is a path; any other one an image's.
    """
    if text.startswith(_LAYOUT):
        directory, tag = split_layout(text.removeprefix(_LAYOUT))
        return f"{_LAYOUT}{os.path.abspath(directory)}" + ("" if tag is None else f":{tag}")
    if text.startswith(("/", "./", "../")) or os.path.exists(text):
        return os.path.abspath(text)
    return str(parse_reference(text))


async def resolve_source(
    text: str, platform: Platform, sources: BlobSources, *, plain_http: bool
) -> SourceImage:
    """The layers of an absolute SOURCE. Raises FetchError."""
    if text.startswith(_LAYOUT):
        return await to_thread.run_sync(_from_layout, text, platform)
    if text.startswith("/"):
        return _from_file(text)
    return await _from_registry(text, platform, sources, plain_http=plain_http)


def pick_layer(image: SourceImage, wanted: str) -> SourceImage:
    """The image reduced to one layer, by number (1 is the lowest) or by digest or its beginning.

    Raises NoSuchLayer.
    """
    count = len(image.layers)
    if wanted.isdecimal() and len(wanted) <= _LONGEST_NUMBER:
        if not 1 <= int(wanted) <= count:
            raise NoSuchLayer(f"{image.name} has no layer {wanted}: it has {count}, the lowest is 1")
        found = [image.layers[int(wanted) - 1]]
    else:
        digits = wanted.removeprefix("sha256:")
        found = [
            layer
            for layer in image.layers
            if layer.digest is not None and layer.digest.removeprefix("sha256:").startswith(digits)
        ]
        if not found or len(digits) < _SHORTEST_PREFIX:
            raise NoSuchLayer(f"{image.name} has no layer with digest {wanted}")
        if len({layer.digest for layer in found}) > 1:
            raise NoSuchLayer(f"{image.name} has several layers whose digest begins with {wanted}")
    return SourceImage(image.name, (found[0],))


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


def _from_layout(text: str, platform: Platform) -> SourceImage:
    directory, tag = split_layout(text.removeprefix(_LAYOUT))
    layout = OciLayout(directory)
    layers = []
    for number, layer in enumerate(layout.manifest(tag, platform).layers, start=1):
        path = layout.blob_path(layer.digest)
        if not os.path.isfile(path):
            raise SourceNotFound(f"{directory} lacks layer {number}, {layer.digest}")
        layers.append(_layer(number, layer, FileSource(path), FileBlob(path)))
    return SourceImage(text, tuple(layers))


def _from_file(path: str) -> SourceImage:
    if os.path.isdir(path):
        hint = f": for an OCI layout, say oci:{path}" if os.path.exists(f"{path}/index.json") else ""
        raise SourceNotFound(f"{path} is a directory, and no layer{hint}")
    if not os.path.exists(path):
        raise SourceNotFound(f"there is no file {path}")
    return SourceImage(path, (SourceLayer(1, None, None, None, FileSource(path), FileBlob(path)),))


def _layer(number: int, layer: LayerDescriptor, source: Source, blob: Blob) -> SourceLayer:
    return SourceLayer(number, layer.digest, layer.size, layer.toc_digest, source, blob)
