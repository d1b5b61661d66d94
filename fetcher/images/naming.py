"""What people name as SRC or DST: a word becomes a place that images are read from or written to.

    python:3   registry.example/python@sha256:...      an image in a registry
    oci:DIR  oci:DIR:TAG                                 an OCI layout
    docker-archive:FILE  docker-archive:FILE:REF         what `docker save` and `podman save` write
    containerd:REF                                       containerd's content store
    ./image.tar                                          an archive too, where that is what is in it
    ./layer.tar.gz                                       otherwise one layer

Directories and files may have colons, so what is there decides where one ends: the longest name of
something that exists. Blocking: `parse_place` looks at what a path holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from fetcher.errors import InvalidReference, SourceNotFound
from fetcher.images.recognition import FileKind, recognize
from fetcher.reference import Reference, parse_reference

if TYPE_CHECKING:
    from fetcher.images.seams import ImageSource
    from fetcher.sources import BlobSources

LAYOUT: Final = "oci:"
ARCHIVE: Final = "docker-archive:"
CONTAINERD: Final = "containerd:"

_FILE_NAME: Final = re.compile(r"[^/:@]+\.(?:tar|tgz|esgz|tar\.(?:gz|gzip|zst|zstd))")
"""A word that is meant as a file, though it could be the name of an image as well."""


@dataclass(frozen=True, slots=True)
class RegistryPlace:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return str(self.reference)


@dataclass(frozen=True, slots=True)
class LayoutPlace:
    """An OCI layout; `tag` may be anything that index.json has or shall have, None for its only image."""

    directory: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{LAYOUT}{self.directory}" + ("" if self.tag is None else f":{self.tag}")


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """A tar file with images; `reference` is a name as the archive has or shall have it, in full or not."""

    path: str
    reference: str | None = None

    def __str__(self) -> str:
        return f"{ARCHIVE}{self.path}" + ("" if self.reference is None else f":{self.reference}")


@dataclass(frozen=True, slots=True)
class ContainerdPlace:
    """An image of containerd; `name` is what was given, `reference` the same in full."""

    name: str
    reference: Reference

    def __str__(self) -> str:
        return f"{CONTAINERD}{self.name}"


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """A file that is, or shall be, one layer."""

    path: str

    def __str__(self) -> str:
        return self.path


Place: TypeAlias = RegistryPlace | LayoutPlace | ArchivePlace | ContainerdPlace | LayerPlace


def parse_place(text: str) -> Place:
    """What `text` names as SRC; paths stay as they were given. Blocking.

    Raises InvalidReference; SourceNotFound for a path where nothing is; FormatError, naming what was found,
    for a file that is neither an archive of images nor a layer; StoreError for one that cannot be read.
    """
    place = _prefixed(text, split_layout, _existing_archive)
    if place is not None:
        return place
    if not is_path(text):
        return RegistryPlace(parse_reference(text))
    if not os.path.isfile(text):
        raise not_a_file(text)
    return LayerPlace(text) if recognize(text) is FileKind.LAYER else ArchivePlace(text)


def parse_destination(text: str) -> Place:
    """What `text` names as DST; nothing needs to be there, and a bare path is one layer.

    Raises InvalidReference.
    """
    place = _prefixed(text, _new_layout, _new_archive)
    if place is not None:
        return place
    return LayerPlace(text) if is_path(text) else RegistryPlace(parse_reference(text))


def is_path(text: str) -> bool:
    """Whether a word without a prefix is a path: it begins like one, is there, or ends like a file's name."""
    return text.startswith(("/", "./", "../")) or os.path.exists(text) or bool(_FILE_NAME.fullmatch(text))


def split_layout(text: str) -> tuple[str, str | None]:
    """DIR and TAG of `DIR[:TAG]`; DIR is the longest part that is a directory. SourceNotFound if none is."""
    found = _split(text, os.path.isdir)
    if found is None:
        raise SourceNotFound(f"there is no directory {text.partition(':')[0]}")
    return found


def not_a_file(path: str) -> SourceNotFound:
    """The error for a path at which no file is."""
    if not os.path.lexists(path):
        return SourceNotFound(f"there is no file {path}")
    if not os.path.isdir(path):
        return SourceNotFound(f"{path} is no regular file")
    hint = f": for an OCI layout, say {LAYOUT}{path}" if os.path.exists(f"{path}/index.json") else ""
    return SourceNotFound(f"{path} is a directory, and no layer{hint}")


def open_source(
    place: RegistryPlace | LayoutPlace | ArchivePlace, *, registries: BlobSources, plain_http: bool = False
) -> ImageSource:
    """The source that reads `place`; nothing is touched before it is entered.

    `plain_http` is the user's explicit wish for HTTP without TLS. What containerd has is opened by
    `snapshotter.image_places`.
    """
    # Each imports what it alone needs: an HTTP client for the first.
    match place:
        case RegistryPlace(reference):
            from fetcher.images.registry_source import RegistryImageSource

            return RegistryImageSource(reference, registries, plain_http=plain_http)
        case LayoutPlace(directory, tag):
            from fetcher.images.layout_source import LayoutImageSource

            return LayoutImageSource(directory, tag)
        case ArchivePlace(path, name):
            from fetcher.images.archive_source import ArchiveImageSource

            return ArchiveImageSource(path, name)


_Split: TypeAlias = Callable[[str], tuple[str, str | None]]


def _prefixed(text: str, layout: _Split, archive: _Split) -> Place | None:
    """What a word with a prefix names; None if it has none."""
    for prefix in (LAYOUT, ARCHIVE, CONTAINERD):
        if text.startswith(prefix):
            rest = text.removeprefix(prefix)
            if not rest or rest.startswith(":"):
                raise InvalidReference(f"{text!r} lacks what stands behind {prefix}")
            if prefix == LAYOUT:
                return LayoutPlace(*layout(rest))
            if prefix == ARCHIVE:
                return ArchivePlace(*archive(rest))
            return ContainerdPlace(rest, parse_reference(rest))
    return None


def _existing_archive(text: str) -> tuple[str, str | None]:
    found = _split(text, os.path.isfile)
    if found is None:
        raise SourceNotFound(f"there is no file {text.partition(':')[0]}")
    return found


def _new_layout(text: str) -> tuple[str, str | None]:
    return _split(text, os.path.isdir) or _in_existing_directory(text)


def _new_archive(text: str) -> tuple[str, str | None]:
    return _split(text, os.path.isfile) or _in_existing_directory(text)


def _split(text: str, there: Callable[[str], bool]) -> tuple[str, str | None] | None:
    """The longest part before a colon that is `there`, and what follows; None if there is none."""
    path = text
    while not there(path):
        path, colon, _ = path.rpartition(":")
        if not colon:
            return None
    return path, text[len(path) + 1 :] or None


def _in_existing_directory(text: str) -> tuple[str, str | None]:
    """The same for what is to be made: the shortest path that lies in the longest directory there is."""
    ends = [index for index, letter in enumerate(text) if letter == ":"]
    lengths = {end: len(parent) for end in (*ends, len(text)) if os.path.isdir(parent := _parent(text[:end]))}
    end = max(lengths, key=lambda end: (lengths[end], -end), default=len(text))
    return text[:end], text[end + 1 :] or None


def _parent(path: str) -> str:
    return os.path.dirname(path) or "."
