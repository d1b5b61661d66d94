"""Which remote layer a Prepare's labels describe. Pure; no I/O.

Labels are an image author's to write where they come from annotations: digests
to be checked are taken from them, never rights, hosts or switches. Two families
are understood, CRI's (containerd and nerdctl) and stargz-snapshotter's own
(`ctr-remote images rpull`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fetcher.manifest import TOC_DIGEST
from fetcher.reference import parse_digest, parse_reference

SNAPSHOT_REF: Final = "containerd.io/snapshot.ref"
"""With it a Prepare says which committed snapshot it is for, by chain ID."""
_CRI: Final = "containerd.io/snapshot/cri."
_STARGZ: Final = "containerd.io/snapshot/remote/stargz."


@dataclass(frozen=True, slots=True)
class RemoteLayer:
    """One layer of an image, as labels name it; digests are `sha256:<hex>` and parsed."""

    reference: str
    digest: str
    toc_digest: str | None
    manifest_digest: str | None


def remote_layer(labels: Mapping[str, str]) -> RemoteLayer | None:
    """The layer that the labels describe, None if they describe none.

    Raises InvalidReference if they try to and cannot be parsed.
    """
    for reference_label, digest_label in (
        (_CRI + "image-ref", _CRI + "layer-digest"),
        (_STARGZ + "reference", _STARGZ + "digest"),
    ):
        reference, digest = labels.get(reference_label), labels.get(digest_label)
        if reference and digest:
            return RemoteLayer(
                reference=str(parse_reference(reference)),
                digest=parse_digest(digest),
                toc_digest=_digest(labels.get(TOC_DIGEST)),
                manifest_digest=_digest(labels.get(_CRI + "manifest-digest")),
            )
    return None


def _digest(text: str | None) -> str | None:
    return parse_digest(text) if text else None
