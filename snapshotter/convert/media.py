"""Media types of layers: what can be converted, and what stands in a converted image. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fetcher.errors import FormatError
from fetcher.manifest import DOCKER_CONFIG, DOCKER_LAYER, TOC_DIGEST

OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
"""Uncompressed; `+gzip` or `+zstd` follows otherwise."""
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
IMAGE_CONFIGS: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"

_COMPRESSIONS: Final = {
    DOCKER_LAYER: "",
    f"{DOCKER_LAYER}.gzip": "+gzip",
    f"{DOCKER_LAYER}.zstd": "+zstd",
    OCI_LAYER: "",
    f"{OCI_LAYER}+gzip": "+gzip",
    f"{OCI_LAYER}+zstd": "+zstd",
}
_ELSEWHERE: Final = ("foreign", "nondistributable")
_OF_FORMATS: Final = (
    TOC_DIGEST,
    "io.containers.estargz.",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
    "containerd.io/snapshot/stargz/",
)
"""Beginnings of annotations that say how a blob is laid out."""


def oci_layer_type(media_type: str) -> str:
    """OCI's media type for a layer of this one; raises FormatError for what is no layer that we can read."""
    compression = _COMPRESSIONS.get(media_type)
    if compression is not None:
        return OCI_LAYER + compression
    if any(word in media_type for word in _ELSEWHERE):
        raise FormatError(f"it is not distributed with its image ({media_type}), and cannot be converted")
    if "encrypted" in media_type:
        raise FormatError(f"it is encrypted ({media_type}), and cannot be converted")
    raise FormatError(f"{media_type or 'no media type'!r} is none that is known for a layer")


def general_annotations(annotations: Mapping[str, str]) -> dict[str, str]:
    """The annotations that hold for a layer in whatever format it is."""
    return {key: value for key, value in annotations.items() if not key.startswith(_OF_FORMATS)}
