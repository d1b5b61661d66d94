"""The labels and identifiers that containerd's own client gives an image's parts.

Pure functions from digests to strings. Garbage collection follows `containerd.io/gc.ref.*`
from the image record to index, manifest, config, layers and the topmost snapshot; remote
snapshotters learn from `containerd.io/snapshot/*` which layer a snapshot is to become.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fetcher.manifest import promised_toc
from snapshotter.remote import SNAPSHOT_REF

LABEL_LIMIT = 4096
"""Bytes that a label's key and value may have together, by containerd's own validation."""

UNCOMPRESSED = "containerd.io/uncompressed"
EXPIRES = "containerd.io/gc.expire"
CRI_MANAGED = ("io.cri-containerd.image", "managed")

INHERITED = "containerd.io/snapshot/"
"""A layer's annotations with this prefix become labels of its snapshot."""

_GC_CONTENT = "containerd.io/gc.ref.content."
_GC_SNAPSHOT = "containerd.io/gc.ref.snapshot."
_SOURCE = "containerd.io/distribution.source."


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer, bottom first, as the OCI image specification defines it."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            digest = hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest()
            chain.append(f"sha256:{digest}")
        else:
            chain.append(diff_id)
    return chain


def index_labels(manifests: Sequence[str]) -> dict[str, str]:
    """What keeps an index's manifests, those of other platforms too should they be there."""
    return {f"{_GC_CONTENT}m.{number}": digest for number, digest in enumerate(manifests)}


def manifest_labels(config: str, layers: Sequence[str]) -> dict[str, str]:
    """What keeps a manifest's config and layers; a lazy layer need not be in the content store."""
    labels = {f"{_GC_CONTENT}l.{number}": digest for number, digest in enumerate(layers)}
    return {f"{_GC_CONTENT}config": config, **labels}


def config_labels(snapshotter: str, chain_id: str) -> dict[str, str]:
    """What keeps the topmost snapshot of an image, and with it all its parents."""
    return {f"{_GC_SNAPSHOT}{snapshotter}": chain_id}


def source_labels(host: str, repository: str, existing: Mapping[str, str]) -> dict[str, str]:
    """Where a blob came from: `repository` added to those that `existing` names for `host`.

    As containerd's client has it: the label names the host without its port, and is left out
    where it would get too long.
    """
    key = f"{_SOURCE}{urlsplit(f'//{host}').hostname}"
    repositories = {name for name in existing.get(key, "").split(",") if name} | {repository}
    value = ",".join(sorted(repositories))
    return {key: value} if fits(key, value) else {}


def snapshot_labels(
    *,
    chain_id: str,
    reference: str,
    manifest_digest: str,
    layers: Sequence[str],
    annotations: Mapping[str, str],
) -> dict[str, str]:
    """The labels for Prepare of one layer.

    `layers` are the digests of this layer and of those above it, in that order. Annotations
    come first, so that an image's author cannot overwrite what we say.
    """
    inherited = {
        key: value for key, value in annotations.items() if key.startswith(INHERITED) and fits(key, value)
    }
    layers_key = f"{INHERITED}cri.image-layers"
    return inherited | {
        SNAPSHOT_REF: chain_id,
        f"{INHERITED}cri.image-ref": reference,
        f"{INHERITED}cri.manifest-digest": manifest_digest,
        f"{INHERITED}cri.layer-digest": layers[0],
        layers_key: _joined_within(layers, LABEL_LIMIT - len(layers_key)),
    }


def may_be_lazy(annotations: Mapping[str, str]) -> bool:
    """Whether a layer carries anything that a remote snapshotter could open it by."""
    return promised_toc(annotations) is not None or any(key.startswith(INHERITED) for key in annotations)


def fits(key: str, value: str) -> bool:
    """Whether containerd takes this label."""
    return len(key.encode()) + len(value.encode()) <= LABEL_LIMIT


def _joined_within(digests: Sequence[str], limit: int) -> str:
    """As many digests from the front as fit into `limit` bytes with commas between them."""
    joined = ""
    for digest in digests:
        longer = f"{joined},{digest}" if joined else digest
        if len(longer) > limit:
            break
        joined = longer
    return joined
