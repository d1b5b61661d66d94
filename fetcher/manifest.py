"""Image indexes and manifests, OCI's and docker's. Pure; no I/O.

OCI image-spec, "image-index" and "manifest"; docker's "manifest list" and
"image manifest version 2, schema 2" have the same fields.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from fetcher.errors import FormatError, InvalidReference
from fetcher.reference import Reference, parse_digest

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
ZSTD_TOC_DIGESTS: Final = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
)
"""Of the compressed TOC of a zstd:chunked layer, by containers/storage's name and by its first one."""

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
"""Uncompressed; `.gzip` or `.zstd` follows otherwise."""
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding JSON raises: no JSON or of another shape, a text that is no UTF-8, nested without end."""
_WORD: Final = re.compile(r"[a-z0-9_.-]+")
_LEVEL: Final = re.compile(r"v?([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in GOOS and GOARCH words; `variant` may be empty."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def host(cls) -> Platform:
        """This machine."""
        machine = os.uname().machine
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """From "linux/amd64" or "linux/arm/v7"; raises InvalidReference."""
        words = text.split("/")
        if len(words) not in (2, 3) or not all(_WORD.fullmatch(word) for word in words):
            raise InvalidReference(f"{text!r} is not a platform: expected OS/ARCHITECTURE[/VARIANT]")
        return cls(*words)

    def rank(self, other: Platform) -> int | None:
        """How well an image for `other` suits: higher is better, None if it does not run here.

        A processor runs what is for its own variant and for the lower ones.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        mine, others = self._variant, other._variant
        if mine == others:
            return _level(others) or 0
        own_level, level = _level(mine), _level(others)
        return level if own_level is not None and level is not None and level < own_level else None

    @property
    def _variant(self) -> str:
        return self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.architecture, self.variant) if word)


def _level(variant: str) -> int | None:
    found = _LEVEL.fullmatch(variant)
    return None if found is None else int(found[1])


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob or a manifest by digest; `size` in bytes."""

    digest: str
    size: int
    media_type: str
    annotations: dict[str, str]


def promised_toc(annotations: Mapping[str, str]) -> str | None:
    """The digest of its TOC that a layer's annotations promise; None if there is no valid one.

    That of the JSON goes first, because it becomes a label of the snapshot, so that all find the same one.
    """
    for name in (TOC_DIGEST, *ZSTD_TOC_DIGESTS):
        try:
            return parse_digest(annotations.get(name, ""))
        except InvalidReference:
            continue
    return None


@dataclass(frozen=True, slots=True)
class LayerDescriptor(Descriptor):
    """A layer of an image."""

    @property
    def toc_digest(self) -> str | None:
        """The digest of the layer's table of contents; None if no valid one is promised."""
        return promised_toc(self.annotations)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image: its config blob, and its layers from the bottom up."""

    config: Descriptor
    layers: tuple[LayerDescriptor, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A manifest that an index lists; some give no platform."""

    descriptor: Descriptor
    platform: Platform | None


@dataclass(frozen=True, slots=True)
class Document:
    """An index or a manifest as it was served, verified against `digest`."""

    digest: str
    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """An image for one platform. `index` is None if the reference names a manifest itself."""

    reference: Reference
    index: Document | None
    manifest: Document
    parsed: Manifest

    @property
    def target(self) -> Document:
        """What the reference names: the index if there is one, else the manifest."""
        return self.index or self.manifest

    @property
    def config(self) -> Descriptor:
        """The config blob."""
        return self.parsed.config

    @property
    def layers(self) -> tuple[LayerDescriptor, ...]:
        """The layers from the bottom up."""
        return self.parsed.layers


class _WirePlatform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""


_PLATFORMS: Final = msgspec.json.Decoder(_WirePlatform)


class _WireDescriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _WirePlatform | None = None


class _WireManifest(msgspec.Struct, frozen=True):
    config: _WireDescriptor
    layers: list[_WireDescriptor]


_MANIFESTS: Final = msgspec.json.Decoder(_WireManifest)


class _WireIndex(msgspec.Struct, frozen=True):
    manifests: list[_WireDescriptor]


_INDEXES: Final = msgspec.json.Decoder(_WireIndex)


class _WireType(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_TYPES: Final = msgspec.json.Decoder(_WireType)


def document_type(data: bytes, content_type: str) -> str:
    """The media type of an index or a manifest: its own word first, then the server's.

    Without either, what it looks like. Raises FormatError for what is neither, such as docker's schema 1,
    and for what could be taken for both (CVE-2021-41190).
    """
    try:
        wire = _TYPES.decode(data)
    except _UNDECODABLE as error:
        raise FormatError(f"not a manifest: {error}") from error
    if wire.manifests is not msgspec.UNSET and wire.layers is not msgspec.UNSET:
        raise FormatError("not a manifest: it has both layers and manifests")
    served = content_type.partition(";")[0].strip().lower()
    named = wire.media_type or served
    if named in INDEX_TYPES | MANIFEST_TYPES:
        return named
    if wire.schema_version != 2 or wire.media_type:
        kind = named or f"schema version {wire.schema_version}"
        raise FormatError(f"not an image manifest or index that is supported: {kind}")
    return OCI_MANIFEST if wire.manifests is msgspec.UNSET else OCI_INDEX


def parse_manifest(data: bytes) -> Manifest:
    """Raises FormatError."""
    try:
        wire = _MANIFESTS.decode(data)
        layers = tuple(LayerDescriptor(*_fields(layer)) for layer in wire.layers)
        return Manifest(Descriptor(*_fields(wire.config)), layers)
    except (*_UNDECODABLE, InvalidReference) as error:
        raise FormatError(f"not an image manifest: {error}") from error


def parse_index(data: bytes, *, types: Collection[str] = MANIFEST_TYPES) -> list[IndexEntry]:
    """What an index lists of `types`, by default images, in its order; raises FormatError."""
    try:
        wire = _INDEXES.decode(data)
        return [
            IndexEntry(Descriptor(*_fields(entry)), _platform(entry.platform))
            for entry in wire.manifests
            if entry.media_type in types
        ]
    except (*_UNDECODABLE, InvalidReference) as error:
        raise FormatError(f"not an image index: {error}") from error


class _WireRootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str]


class _WireConfig(msgspec.Struct, frozen=True):
    rootfs: _WireRootFs


_CONFIGS: Final = msgspec.json.Decoder(_WireConfig)


def parse_config_platform(config: bytes) -> Platform | None:
    """What an image is for by its config; None where that does not say. Raises FormatError."""
    try:
        return _platform(_PLATFORMS.decode(config))
    except _UNDECODABLE as error:
        raise FormatError(f"no image config: {error}") from error


def parse_diff_ids(config: bytes) -> tuple[str, ...]:
    """The digests of the layers' uncompressed tars, from the bottom up, as a config has them.

    Raises FormatError.
    """
    try:
        return tuple(map(parse_digest, _CONFIGS.decode(config).rootfs.diff_ids))
    except (*_UNDECODABLE, InvalidReference) as error:
        raise FormatError(f"no config that a container can be made of: {error}") from error


def choose_manifest(entries: list[IndexEntry], platform: Platform) -> Descriptor | None:
    """The best entry for `platform`, None if there is none; the first of equals.

    A lone entry without a platform is taken for any.
    """
    best: Descriptor | None = None
    best_rank = -1
    for entry in entries:
        rank = None if entry.platform is None else platform.rank(entry.platform)
        if rank is not None and rank > best_rank:
            best, best_rank = entry.descriptor, rank
    if best is None and len(entries) == 1 and entries[0].platform is None:
        return entries[0].descriptor
    return best


def _fields(wire: _WireDescriptor) -> tuple[str, int, str, dict[str, str]]:
    return parse_digest(wire.digest), wire.size, wire.media_type, wire.annotations or {}


def _platform(wire: _WirePlatform | None) -> Platform | None:
    return None if wire is None or not wire.os else Platform(wire.os, wire.architecture, wire.variant)
