"""The image that is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from fetcher.credentials import CredentialStore
from fetcher.manifest import Platform, ResolvedImage
from fetcher.reference import parse_reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from scripts.demonstration.stage import Stage
from scripts.demonstration.telling import tell
from tests.integration.harness import Containerd, call
from tests.integration.image import real_image

_NUMPY: Final = ("python3", "-B", "-c", "import numpy; print('Hello from numpy', numpy.__version__)")
_PANDAS: Final = ("python3", "-B", "-c", "import pandas; print('pandas', pandas.__version__)")
_HELLO: Final = ("sh", "-c", "echo Hello from $(head -n 1 /etc/os-release)")
_CONVERTING: Final = 3600.0
"""Seconds that a large image may take."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An eStargz image in a registry, and what to run in it."""

    reference: str
    layers: int
    size: int
    """Of all layers, compressed bytes."""
    command: tuple[str, ...]
    """Prints a line."""
    unexpected: tuple[str, ...] = ()
    """Prints a line too, and needs files that the image's order does not bring first."""


def cached_picture(stage: Stage) -> Picture:
    """The image that scripts/image makes, behind the throttled link."""
    image = real_image()
    reference = stage.registry.push(image.optimized, "python")
    reference = reference.replace(stage.registry.host, stage.throttle.host)
    tell(f"The image that scripts/image made: Debian with Python, numpy and pandas, as eStargz: {reference}")
    resolved = _resolve(reference)
    return Picture(reference, len(resolved.layers), _size(resolved), _NUMPY, _PANDAS)


def own_picture(stage: Stage, reference: str, command: Sequence[str]) -> Picture:
    """The user's image: as it is if it is eStargz, else converted into the registry here.

    Raises FetchError, CommandFailed.
    """
    resolved = _resolve(reference)
    if any(layer.toc_digest is None for layer in resolved.layers):
        tell(
            f"Some layers of {reference} have no table of contents, so they cannot be pulled lazily. "
            "Converting the image with `ctr-remote images convert --estargz` ..."
        )
        reference = _convert(stage, reference)
        resolved = _resolve(reference)
    else:
        tell(f"{reference} is eStargz; it comes from where it is, at the speed of your line.")
    return Picture(reference, len(resolved.layers), _size(resolved), tuple(command) or _HELLO)


def _convert(stage: Stage, reference: str) -> str:
    archive = os.path.join(stage.directory, "image.tar")
    plain, converted = "layergate.demo/image:plain", f"{stage.registry.host}/image:estargz"
    source = parse_reference(reference)
    is_https = RegistrySettings().endpoint(source.host).startswith("https://")
    copy = ["skopeo", "copy", "--quiet", f"--src-tls-verify={str(is_https).lower()}"]
    call([*copy, f"docker://{source}", f"docker-archive:{archive}:{plain}"], timeout=_CONVERTING)
    with Containerd(os.path.join(stage.directory, "converter")) as containerd:
        containerd.ctr("images", "import", archive)
        os.unlink(archive)
        convert = ["images", "convert", "--estargz", "--oci", plain, converted]
        containerd.ctr(*convert, program="ctr-remote", timeout=_CONVERTING)
        containerd.ctr("images", "push", "--plain-http", converted)
    return converted.replace(stage.registry.host, stage.throttle.host)


def _size(resolved: ResolvedImage) -> int:
    return sum(layer.size for layer in resolved.layers)


def _resolve(text: str) -> ResolvedImage:
    async def resolve() -> ResolvedImage:
        settings = RegistrySettings()
        async with RegistryClient(settings, CredentialStore(settings.docker_config)) as client:
            return await client.manifest(parse_reference(text), platform=Platform.host())

    return anyio.run(resolve)
