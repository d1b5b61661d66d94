"""Images made of hand-made layers, and pushing them to a registry over HTTP."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

import httpx

from tests.estargz import Layer

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
"""This machine's, as images name it."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image's manifest, config and layers, bottom layer first."""

    manifest: bytes
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return digest(self.manifest)

    @property
    def blobs(self) -> dict[str, bytes]:
        """Config and layers by digest, as a registry keeps them."""
        return {digest(self.config): self.config} | {layer.digest: layer.blob for layer in self.layers}


def image(layers: Sequence[Layer], *, command: Sequence[str] = (), annotate: bool = True) -> Image:
    """An image for this machine; layers may be eStargz and plain ones in any mixture.

    `annotate=False` leaves the layers' annotations out, the TOC digests with them.
    """
    config = _json(
        {
            "architecture": ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": list(command)},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(config), "size": len(config)},
            "layers": [_descriptor(layer, annotate=annotate) for layer in layers],
        }
    )
    return Image(manifest, config, tuple(layers))


def index(image: Image, *, architecture: str = ARCHITECTURE) -> bytes:
    """An image index with this one image in it."""
    entry = {
        "mediaType": MANIFEST,
        "digest": image.digest,
        "size": len(image.manifest),
        "platform": {"os": "linux", "architecture": architecture},
    }
    return _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})


def push(host: str, repository: str, image: Image, *, tag: str = "latest") -> str:
    """Push to the registry at `host` ("127.0.0.1:5000", plain HTTP); the reference to pull.

    Raises httpx.HTTPStatusError if the registry refuses.
    """
    with httpx.Client(base_url=f"http://{host}/v2/{repository}/", timeout=30, trust_env=False) as client:
        for name, data in image.blobs.items():
            if client.head(f"blobs/{name}").is_success:
                continue
            started = client.post("blobs/uploads/").raise_for_status()
            location = urljoin(str(started.url), started.headers["location"])
            client.put(location, params=_upload_parameters(location, name), content=data).raise_for_status()
        answer = client.put(f"manifests/{tag}", content=image.manifest, headers={"content-type": MANIFEST})
        answer.raise_for_status()
    return f"{host}/{repository}:{tag}"


def digest(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _upload_parameters(location: str, digest: str) -> httpx.QueryParams:
    # The location carries the upload's state in its query, which `params` would replace.
    return httpx.URL(location).params.merge({"digest": digest})


def _descriptor(layer: Layer, *, annotate: bool) -> dict[str, object]:
    descriptor: dict[str, object] = {
        "mediaType": layer.media_type,
        "digest": layer.digest,
        "size": len(layer.blob),
    }
    if annotate and layer.annotations:
        descriptor["annotations"] = layer.annotations
    return descriptor


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
