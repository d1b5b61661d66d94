"""From a reference to an image that can be pulled: the part of a pull that talks to the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fetcher.blob import RegistryBlob
from fetcher.errors import FormatError
from fetcher.manifest import Descriptor as ManifestDescriptor
from fetcher.manifest import Document as ServedDocument
from fetcher.manifest import ResolvedImage, parse_diff_ids, parse_index
from fetcher.reference import Reference
from fetcher.registry import RegistryClient
from snapshotter.containerd.image import Document, PullableImage, UnusableImage
from snapshotter.containerd.types import Descriptor

_CONFIG_LIMIT: Final = 8 << 20
"""Bytes; a config lists environment, command, history and layers, a few KB as a rule."""


async def pullable_image(client: RegistryClient, resolved: ResolvedImage) -> PullableImage:
    """A resolved image with all of its documents here, and its layers not.

    Raises FetchError: the registry's, or UnusableImage.
    """
    reference = resolved.reference
    config = await client.blob_bytes(reference, resolved.config.digest, limit=_CONFIG_LIMIT)

    @asynccontextmanager
    async def open_layer(layer: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        blob = RegistryBlob(client, reference, layer.digest, layer.size)
        async with blob.stream(offset, layer.size) as blocks:
            yield blocks

    return PullableImage(
        name=record_name(reference),
        host=reference.host,
        repository=reference.repository,
        digest_name=f"{reference.name}@{resolved.target.digest}",
        index=None if resolved.index is None else _document(resolved.index),
        siblings=() if resolved.index is None else _siblings(resolved.index),
        manifest=_document(resolved.manifest),
        config=Document(_descriptor(resolved.config), config),
        layers=tuple(_descriptor(layer) for layer in resolved.layers),
        diff_ids=_diff_ids(config, reference),
        open_layer=open_layer,
    )


def record_name(reference: Reference) -> str:
    """As CRI and nerdctl look for it: a digest makes the tag void (`reference.ParseDockerRef`)."""
    return f"{reference.name}@{reference.digest}" if reference.digest is not None else str(reference)


def _diff_ids(config: bytes, reference: Reference) -> tuple[str, ...]:
    try:
        return parse_diff_ids(config)
    except FormatError as error:
        raise UnusableImage(f"{reference} has {error}") from error


def _siblings(index: ServedDocument) -> tuple[str, ...]:
    return tuple(entry.descriptor.digest for entry in parse_index(index.data))


def _document(served: ServedDocument) -> Document:
    return Document(Descriptor(served.media_type, served.digest, len(served.data)), served.data)


def _descriptor(descriptor: ManifestDescriptor) -> Descriptor:
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, descriptor.annotations)
