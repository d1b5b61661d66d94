"""What an OCI layout says of the images in it, and docker's manifest.json beside it. Pure; no I/O.

OCI image-spec, "image-layout"; docker's image specification v1.2, "combined image JSON + filesystem
changeset format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from fetcher.errors import FormatError
from fetcher.manifest import OCI_INDEX, Document, Manifest

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation for a tag."""
IMAGE_NAME: Final = "io.containerd.image.name"
"""The annotation for the full name, which `ctr images import` and `docker load` go by."""
LAYOUT_FILE: Final = "oci-layout"
LAYOUT_VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'

Index: TypeAlias = dict[str, object]
"""An index.json, with whatever fields it came with."""


def parse_layout_index(data: bytes) -> Index:
    """An index.json; raises FormatError."""
    try:
        index = json.loads(data)
    except ValueError as error:
        raise FormatError(f"not an image index: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("manifests", []), list):
        raise FormatError("not an image index")
    return index


def named_entry(root: Document, *, tag: str | None, image_name: str | None = None) -> dict[str, object]:
    """An entry of index.json for an image."""
    entry: dict[str, object] = {
        "mediaType": root.media_type,
        "digest": root.digest,
        "size": len(root.data),
    }
    names = {IMAGE_NAME: image_name, REF_NAME: tag}
    annotations = {key: value for key, value in names.items() if value is not None}
    return {**entry, "annotations": annotations} if annotations else entry


def with_entry(index: Index | None, root: Document, tag: str | None) -> bytes:
    """index.json with `root` as the image `tag`, in the place of the one that had the tag; others stay.

    An image without a tag takes the place of the other one without.
    """
    index = index or {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    entries = index.get("manifests")
    kept = [entry for entry in entries if _tag(entry) != tag] if isinstance(entries, list) else []
    return encode({**index, "manifests": [*kept, named_entry(root, tag=tag)]})


def docker_manifest(manifest: Manifest, names: Sequence[str]) -> bytes:
    """The manifest.json by which `docker load` takes an image out of an OCI layout."""
    return encode(
        [
            {
                "Config": blob_name(manifest.config.digest),
                "RepoTags": list(names) or None,
                "Layers": [blob_name(layer.digest) for layer in manifest.layers],
            }
        ]
    )


def blob_name(digest: str) -> str:
    """Where a blob is within a layout."""
    return "blobs/" + digest.replace(":", "/")


def encode(value: object) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def _tag(entry: object) -> str | None:
    annotations = entry.get("annotations") if isinstance(entry, Mapping) else None
    tag = annotations.get(REF_NAME) if isinstance(annotations, Mapping) else None
    return tag if isinstance(tag, str) and tag else None
