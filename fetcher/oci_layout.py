"""Reading an OCI image layout: a directory in which an image's manifest and blobs lie as files.

    DIR/index.json              the manifests and indexes in it, each with its tag as an annotation
    DIR/blobs/sha256/<hex>      manifests, configs and layers

OCI image-spec, "image-layout". What skopeo, buildah, buildx and `ctr images export` write is read, tags
by `org.opencontainers.image.ref.name` and containerd's image names too. Indexes and manifests are verified
against their digests; layers are not read here. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from fetcher.errors import FormatError, InvalidReference, SourceNotFound, StoreError, VerificationError
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    IndexEntry,
    Manifest,
    Platform,
    choose_manifest,
    document_type,
    parse_manifest,
)
from fetcher.reference import parse_digest

_TAG: Final = "org.opencontainers.image.ref.name"
_NAME: Final = "io.containerd.image.name"
_DOCUMENT_LIMIT: Final = 16 << 20
"""Bytes of an index or a manifest; real ones have some KB."""
_NESTING_LIMIT: Final = 4
_SHOWN_TAGS: Final = 10


class _WirePlatform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _WireEntry(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _WirePlatform | None = None


class _WireIndex(msgspec.Struct, frozen=True):
    manifests: list[_WireEntry]


def split_layout(text: str) -> tuple[str, str | None]:
    """DIR and TAG of `DIR[:TAG]`. Both may have colons, so DIR is the longest part that is a directory here.

    Raises SourceNotFound if none is.
    """
    if os.path.isdir(text):
        return text, None
    directory = text
    while ":" in directory:
        directory = directory.rpartition(":")[0]
        if os.path.isdir(directory):
            return directory, text[len(directory) + 1 :]
    raise SourceNotFound(f"there is no directory {text.partition(':')[0]}")


class OciLayout:
    """The layout in one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)

    def blob_path(self, digest: str) -> str:
        """The file of a blob; `digest` is `sha256:<hex>`. Raises InvalidReference if it is not."""
        return os.path.join(self.directory, "blobs", *parse_digest(digest).split(":"))

    def manifest(self, tag: str | None, platform: Platform) -> Manifest:
        """The manifest of the image `tag` for `platform`; without a tag, of the only image there is.

        Raises SourceNotFound, FormatError, VerificationError, StoreError.
        """
        entries = self._entries()
        named = {
            entry.descriptor.digest: entry for entry in entries if tag in (None, *_names(entry.descriptor))
        }
        if not named:
            wanted = "no image" if tag is None else f"no image {tag!r}; it has {_tags(entries)}"
            raise SourceNotFound(f"{self.directory} has {wanted}")
        if tag is None and len(named) > 1 and not _one_each(named.values()):
            raise SourceNotFound(f"{self.directory} has several images: name one of {_tags(entries)}")
        return self._resolve(list(named.values()), platform, _NESTING_LIMIT)

    def _resolve(self, entries: list[IndexEntry], platform: Platform, depth: int) -> Manifest:
        """The manifest that suits best among `entries`, through nested indexes."""
        chosen = choose_manifest(entries, platform)
        if chosen is None:
            raise SourceNotFound(f"{self.directory} has no image for {platform}")
        data = self._document(chosen)
        try:
            if document_type(data, chosen.media_type) not in INDEX_TYPES:
                return parse_manifest(data)
            if not depth:
                raise FormatError(f"more than {_NESTING_LIMIT} indexes within each other")
            nested = _parse_index(data)
        except FormatError as error:
            raise FormatError(f"{self.blob_path(chosen.digest)}: {error}") from error
        return self._resolve(nested, platform, depth - 1)

    def _entries(self) -> list[IndexEntry]:
        """What index.json lists."""
        path = os.path.join(self.directory, "index.json")
        try:
            return _parse_index(_read(path))
        except FileNotFoundError:
            raise SourceNotFound(f"{self.directory} is no OCI layout: it has no index.json") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    def _document(self, descriptor: Descriptor) -> bytes:
        path = self.blob_path(descriptor.digest)
        try:
            data = _read(path)
        except FileNotFoundError:
            raise SourceNotFound(f"{self.directory} lacks the manifest {descriptor.digest}") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error
        if "sha256:" + hashlib.sha256(data).hexdigest() != descriptor.digest:
            raise VerificationError(f"{path} has another digest than its name says")
        return data


def _parse_index(data: bytes) -> list[IndexEntry]:
    """Every manifest and index that an index lists, in its order."""
    try:
        wire = msgspec.json.decode(data, type=_WireIndex)
        return [
            IndexEntry(
                Descriptor(parse_digest(entry.digest), entry.size, entry.media_type, entry.annotations or {}),
                _platform(entry.platform),
            )
            for entry in wire.manifests
            if entry.media_type in INDEX_TYPES | MANIFEST_TYPES
        ]
    except (msgspec.DecodeError, InvalidReference) as error:
        raise FormatError(f"not an image index: {error}") from error


def _platform(wire: _WirePlatform | None) -> Platform | None:
    return None if wire is None or not wire.os else Platform(wire.os, wire.architecture, wire.variant)


def _names(descriptor: Descriptor) -> set[str]:
    annotations = descriptor.annotations
    return {annotations[key] for key in (_TAG, _NAME) if annotations.get(key)}


def _one_each(entries: Iterable[IndexEntry]) -> bool:
    """Whether the entries are one image for several platforms, none of them twice."""
    platforms = [entry.platform for entry in entries]
    return None not in platforms and len(set(platforms)) == len(platforms)


def _tags(entries: Iterable[IndexEntry]) -> str:
    tags = sorted({tag for entry in entries if (tag := entry.descriptor.annotations.get(_TAG))})
    return ", ".join(tags[:_SHOWN_TAGS]) + (", ..." if len(tags) > _SHOWN_TAGS else "") or "none with a tag"


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_DOCUMENT_LIMIT + 1)
    if len(data) > _DOCUMENT_LIMIT:
        raise FormatError(f"more than {_DOCUMENT_LIMIT} bytes: no index or manifest")
    return data
