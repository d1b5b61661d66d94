"""Reading an OCI image layout: a directory, or a tar of one, in which an image's parts lie as files.

    index.json              the manifests and indexes in it, each with its tag as an annotation
    blobs/sha256/<hex>      manifests, configs and layers

OCI image-spec, "image-layout". What skopeo, buildah, buildx, `docker save` and `ctr images export` write is
read, tags by `org.opencontainers.image.ref.name` and containerd's image names too. Indexes, manifests and
configs are verified against their digests; layers are not. Blocking.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Sequence
from typing import Final, Protocol

import msgspec

from fetcher.blob import Blob, FileBlob
from fetcher.errors import FormatError, InvalidReference, SourceNotFound, StoreError, VerificationError
from fetcher.images.layout_index import IMAGE_NAME, REF_NAME, blob_name
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Document,
    IndexEntry,
    document_type,
    parse_index,
)
from fetcher.reference import parse_digest, parse_reference

DOCUMENT_LIMIT: Final = 16 << 20
"""Bytes of an index, a manifest or a config; real ones have some KB."""

_DOCUMENT_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES
_INDEX: Final = "index.json"
_SHOWN_NAMES: Final = 10


class LayoutFiles(Protocol):
    """The files of a layout, by names relative to it.

    Every method raises SourceNotFound, FormatError, StoreError.
    """

    @property
    def name(self) -> str:
        """What errors call the layout."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes."""

    def blob(self, name: str) -> Blob:
        """A file to be read in parts."""


class LayoutDirectory:
    """A layout in a directory."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)

    @property
    def name(self) -> str:
        """See LayoutFiles."""
        return self.directory

    def path(self, name: str) -> str:
        """Where a file of the layout is."""
        return os.path.join(self.directory, name)

    def read(self, name: str, limit: int) -> bytes:
        """See LayoutFiles."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise SourceNotFound(f"{self.directory} lacks {name}") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error
        if len(data) > limit:
            raise FormatError(f"{path} has more than the {limit} bytes that are allowed")
        return data

    def blob(self, name: str) -> Blob:
        """See LayoutFiles."""
        path = self.path(name)
        if not os.path.isfile(path):
            raise SourceNotFound(f"{self.directory} lacks {name}")
        return FileBlob(path)


class OciLayout:
    """The images of one layout."""

    def __init__(self, files: LayoutFiles) -> None:
        self._files = files

    def root(self, name: str | None) -> Document:
        """The index or manifest of the image `name`; without a name, of the only image there is.

        Where index.json lists the image once for each platform, that is an index. Raises SourceNotFound,
        FormatError, VerificationError, StoreError.
        """
        data, entries = self._entries()
        named = [entry for entry in entries if name is None or is_named(name, names_of(entry.descriptor))]
        if not named:
            wanted = "no image" if name is None else f"no image {name!r}; it has {_names(entries)}"
            raise SourceNotFound(f"{self._files.name} has {wanted}")
        digests = {entry.descriptor.digest for entry in named}
        if len(digests) == 1:
            return self.document(named[0].descriptor)
        if not _one_each(named):
            raise SourceNotFound(f"{self._files.name} has several images: name one of {_names(entries)}")
        return _index_of(data, digests)

    def document(self, descriptor: Descriptor) -> Document:
        """An index, manifest or config, verified; its type is its own word's, then the descriptor's.

        Raises SourceNotFound, FormatError, VerificationError, StoreError.
        """
        name = blob_name(parse_digest(descriptor.digest))
        data = self._files.read(name, DOCUMENT_LIMIT)
        if "sha256:" + hashlib.sha256(data).hexdigest() != descriptor.digest:
            raise VerificationError(f"{self._files.name}: {name} has another digest than its name says")
        media_type = descriptor.media_type
        if media_type in _DOCUMENT_TYPES:
            try:
                media_type = document_type(data, media_type)
            except FormatError as error:
                raise FormatError(f"{self._files.name}: {name}: {error}") from error
        return Document(descriptor.digest, media_type, data)

    def blob(self, descriptor: Descriptor) -> Blob:
        """A layer. Raises SourceNotFound, FormatError."""
        return self._files.blob(blob_name(parse_digest(descriptor.digest)))

    def _entries(self) -> tuple[bytes, list[IndexEntry]]:
        """index.json, and the images and indexes that it lists."""
        try:
            data = self._files.read(_INDEX, DOCUMENT_LIMIT)
        except SourceNotFound:
            raise SourceNotFound(f"{self._files.name} is no OCI layout: it has no {_INDEX}") from None
        try:
            return data, parse_index(data, types=_DOCUMENT_TYPES)
        except FormatError as error:
            raise FormatError(f"{self._files.name}: {_INDEX}: {error}") from error


def names_of(descriptor: Descriptor) -> list[str]:
    """The names that an index.json gives an image, the full one last."""
    annotations = descriptor.annotations
    return [annotations[key] for key in (REF_NAME, IMAGE_NAME) if annotations.get(key)]


def is_named(wanted: str, names: Iterable[str]) -> bool:
    """Whether one of an image's names is `wanted`, as it stands or as a reference in full."""
    return any(name == wanted or _in_full(name) == _in_full(wanted) for name in names)


def shown_names(names: Collection[str]) -> str:
    """Names of images, for an error."""
    ordered = sorted(set(names))
    more = ", ..." if len(ordered) > _SHOWN_NAMES else ""
    return ", ".join(ordered[:_SHOWN_NAMES]) + more


def _in_full(name: str) -> str:
    try:
        return str(parse_reference(name))
    except InvalidReference:
        return name


def _one_each(entries: Sequence[IndexEntry]) -> bool:
    """Whether the entries are one image for several platforms, none of them twice."""
    platforms = [entry.platform for entry in entries]
    return None not in platforms and len(set(platforms)) == len(platforms)


def _names(entries: Iterable[IndexEntry]) -> str:
    named = [names[-1] for entry in entries if (names := names_of(entry.descriptor))]
    return shown_names(named) or "none with a tag"


class _RawIndex(msgspec.Struct):
    manifests: list[dict[str, object]]


_RAW_INDEXES: Final = msgspec.json.Decoder(_RawIndex)


def _index_of(data: bytes, digests: Collection[str]) -> Document:
    """An index of those entries of an index.json, without the names that they have there."""
    manifests = []
    left = set(digests)
    for entry in _RAW_INDEXES.decode(data).manifests:
        if entry["digest"] in left:
            left.remove(str(entry["digest"]))
            annotations = entry.pop("annotations", None)
            if isinstance(annotations, dict):
                kept = {key: annotations[key] for key in annotations if key not in (REF_NAME, IMAGE_NAME)}
                entry |= {"annotations": kept} if kept else {}
            manifests.append(entry)
    index = msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
    return Document("sha256:" + hashlib.sha256(index).hexdigest(), OCI_INDEX, index)
