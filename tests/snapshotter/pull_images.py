"""Hand-made images as a pull gets them, without a registry."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from snapshotter.containerd.image import Document, PullableImage
from snapshotter.containerd.types import Descriptor
from tests import estargz, oci


def shell() -> estargz.Layer:
    """A plain layer with this machine's /bin/sh and the libraries it needs: enough to run something."""
    program = os.path.realpath("/bin/sh")
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    libraries = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    entries = []
    for name, path in {"bin/sh": program, **{path.lstrip("/"): path for path in libraries}}.items():
        with open(path, "rb") as source:
            entries.append(estargz.file(name, source.read(), mode=0o755))
    return estargz.plain(entries)


def text_layer(name: str, content: str, *, lazy: bool = False) -> estargz.Layer:
    """A layer with one file; eStargz when `lazy`."""
    entries = [estargz.file(name, content.encode())]
    return estargz.build(entries) if lazy else estargz.plain(entries)


def tar_of(layer: estargz.Layer) -> bytes:
    """The uncompressed layer."""
    return gzip.decompress(layer.blob)


def pullable(
    image: oci.Image,
    name: str,
    *,
    index: bytes | None = None,
    blobs: Mapping[str, bytes] | None = None,
    diff_ids: tuple[str, ...] | None = None,
) -> PullableImage:
    """What a resolver gives for `image`; `blobs` are what the registry holds, by default the true ones."""
    host, _, rest = name.partition("/")
    repository = rest.partition(":")[0]
    held = image.blobs if blobs is None else blobs

    @asynccontextmanager
    async def open_layer(layer: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        async def blocks() -> AsyncIterator[bytes]:
            for start in range(offset, len(held[layer.digest]), 65536):
                yield held[layer.digest][start : start + 65536]

        yield blocks()

    return PullableImage(
        name=name,
        host=host,
        repository=repository,
        digest_name=f"{host}/{repository}@{oci.digest(index or image.manifest)}",
        index=None if index is None else document(oci.INDEX, index),
        siblings=(image.digest,),
        manifest=document(oci.MANIFEST, image.manifest),
        config=document(oci.CONFIG, image.config),
        layers=tuple(
            Descriptor(layer.media_type, layer.digest, len(layer.blob), layer.annotations)
            for layer in image.layers
        ),
        diff_ids=diff_ids or tuple(layer.diff_id for layer in image.layers),
        open_layer=open_layer,
    )


def document(media_type: str, content: bytes) -> Document:
    """A document with its descriptor."""
    return Document(Descriptor(media_type, oci.digest(content), len(content)), content)
