"""Rewriting an image's documents for new layers: config, manifest, index. Pure; no I/O.

What is rewritten here has been parsed before, and has the fields that make it what it is.

Whatever a document has that we do not know stays as it is, in its place. Rewritten documents are OCI's, since
docker's manifests have no place for a layer's annotations; compact ASCII JSON, so that equal input gives
equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fetcher.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Document
from snapshotter.convert.media import OCI_CONFIG, oci_layer_type

_REFERRED: Final = "vnd.docker.reference.digest"
"""The annotation with which an index's entry says which other entry it is about."""
_OF_CONTENT: Final = frozenset({"data", "urls"})
"""Fields of a descriptor that give other ways to its content."""


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer as the new image has it; `diff_id` is None for one that is the old image's."""

    descriptor: Descriptor
    diff_id: str | None


def document_of(data: bytes, media_type: str) -> Document:
    """A document of these bytes."""
    return Document("sha256:" + hashlib.sha256(data).hexdigest(), media_type, data)


def descriptor_of(document: Document) -> Descriptor:
    """What names a document."""
    return Descriptor(document.digest, len(document.data), document.media_type, {})


def rewritten_config(config: Document, layers: Sequence[NewLayer]) -> Document:
    """The config with the DiffIDs of new layers."""
    value = _object(config)
    rootfs = value.get("rootfs")
    assert isinstance(rootfs, dict), "the config has been parsed before"
    old = rootfs["diff_ids"]
    diff_ids = [layer.diff_id or before for layer, before in zip(layers, old, strict=True)]
    return _encoded({**value, "rootfs": {**rootfs, "diff_ids": diff_ids}}, OCI_CONFIG)


def rewritten_manifest(manifest: Document, config: Document, layers: Sequence[NewLayer]) -> Document:
    """The manifest of the new config and layers."""
    value = _object(manifest)
    old_config, old_layers = value.get("config"), value.get("layers")
    assert isinstance(old_config, dict), "the manifest has been parsed before"
    assert isinstance(old_layers, list)
    described = [
        _described(old, layer.descriptor, oci_layer_type(layer.descriptor.media_type))
        for old, layer in zip(old_layers, layers, strict=True)
    ]
    return _encoded(
        {
            **_typed(value, OCI_MANIFEST),
            "config": _described(old_config, _named(old_config, config), OCI_CONFIG),
            "layers": described,
        },
        OCI_MANIFEST,
    )


def rewritten_index(index: Document, new: Mapping[str, Document]) -> Document:
    """The index with new manifests in the place of those whose digests they are under; others stay."""
    value = _object(index)
    entries = value.get("manifests")
    assert isinstance(entries, list), "the index has been parsed before"
    return _encoded(
        {**_typed(value, OCI_INDEX), "manifests": [_replaced(entry, new) for entry in entries]}, OCI_INDEX
    )


def _replaced(entry: dict[str, object], new: Mapping[str, Document]) -> dict[str, object]:
    document = new.get(str(entry.get("digest")))
    if document is not None:
        fields = {"mediaType": document.media_type, "digest": document.digest, "size": len(document.data)}
        entry = {key: value for key, value in entry.items() if key not in _OF_CONTENT} | fields
    annotations = entry.get("annotations")
    if isinstance(annotations, dict):
        referred = new.get(str(annotations.get(_REFERRED)))
        if referred is not None:
            entry = {**entry, "annotations": {**annotations, _REFERRED: referred.digest}}
    return entry


def _described(old: object, new: Descriptor, media_type: str) -> dict[str, object]:
    """A descriptor in a new document, with those fields of the old one that still hold."""
    fields = old if isinstance(old, dict) else {}
    kept = {key: value for key, value in fields.items() if key not in (*_OF_CONTENT, "annotations")}
    described = {**kept, "mediaType": media_type, "digest": new.digest, "size": new.size}
    if new.annotations:
        described["annotations"] = new.annotations
    return described


def _named(old: Mapping[str, object], config: Document) -> Descriptor:
    annotations = old.get("annotations")
    named = descriptor_of(config)
    return replace(named, annotations=annotations) if isinstance(annotations, dict) else named


def _typed(value: dict[str, object], media_type: str) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": media_type} | {
        key: rest for key, rest in value.items() if key not in ("schemaVersion", "mediaType")
    }


def _object(document: Document) -> dict[str, object]:
    value = json.loads(document.data)
    assert isinstance(value, dict), "the document has been parsed before"
    return value


def _encoded(value: Mapping[str, object], media_type: str) -> Document:
    return document_of(json.dumps(value, separators=(",", ":")).encode(), media_type)
