"""What the tests of destinations write: a small image, or an index of two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fetcher.images import ImageDestination
from fetcher.manifest import OCI_INDEX, Descriptor, Document
from tests import oci
from tests.estargz import Layer, build, dir, file

LAYERS = (
    build([dir("a/"), file("a/1", b"one" * 1000)]),
    build([file("a/2", b"two" * 1000)]),
)
IMAGE = oci.image(LAYERS)
OTHER = oci.image([LAYERS[0]], command=["other"])


def document(data: bytes, media_type: str = oci.MANIFEST) -> Document:
    return Document(oci.digest(data), media_type, data)


def descriptor(data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(oci.digest(data), len(data), media_type, {})


def index_of(*images: oci.Image) -> Document:
    """An index of images for this machine and others, in this order."""
    architectures = (oci.ARCHITECTURE, "s390x", "riscv64")
    entries = [
        {
            "mediaType": oci.MANIFEST,
            "digest": image.digest,
            "size": len(image.manifest),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for image, architecture in zip(images, architectures, strict=False)
    ]
    return document(
        json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode(), OCI_INDEX
    )


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes images to destinations, layers by way of files in a directory."""

    scratch: Path

    async def blobs(self, destination: ImageDestination, image: oci.Image = IMAGE) -> None:
        """Everything but the manifest."""
        await self.layers(destination, image.layers)
        config = descriptor(image.config, oci.CONFIG)
        if not await destination.has(config):
            await destination.put_bytes(config, image.config)

    async def layers(self, destination: ImageDestination, layers: Sequence[Layer]) -> None:
        for layer in layers:
            blob = descriptor(layer.blob, layer.media_type)
            if not await destination.has(blob):
                path = self.scratch / "layer"
                path.write_bytes(layer.blob)
                await destination.put_file(blob, str(path))

    async def image(self, destination: ImageDestination, image: oci.Image = IMAGE) -> None:
        """The whole image."""
        async with destination:
            await self.blobs(destination, image)
            await destination.finish(document(image.manifest))

    async def index(self, destination: ImageDestination, *images: oci.Image) -> Document:
        """Several images, and the index of them."""
        async with destination:
            for image in images:
                await self.blobs(destination, image)
                await destination.put_bytes(descriptor(image.manifest, oci.MANIFEST), image.manifest)
            root = index_of(*images)
            await destination.finish(root)
        return root
