"""The names that an image had where it comes from, for an archive that it goes to. Blocking."""

from __future__ import annotations

from typing import Final

import msgspec

from fetcher.errors import InvalidReference
from fetcher.images.docker_archive import MANIFEST_NAME
from fetcher.images.naming import ArchivePlace, ContainerdPlace, Place, RegistryPlace
from fetcher.images.tar_index import TarIndex
from fetcher.manifest import INDEX_TYPES, MANIFEST_TYPES, parse_index
from fetcher.oci_layout import DOCUMENT_LIMIT, names_of
from fetcher.reference import Reference, parse_reference


class _Saved(msgspec.Struct, rename="pascal"):
    repo_tags: list[str] | None = None


_INDEXES: Final = msgspec.json.Decoder(list[_Saved])


def source_names(place: Place) -> list[Reference]:
    """The names of the image at `place`, none if it has none. Raises FetchError."""
    match place:
        case RegistryPlace(reference) | ContainerdPlace(reference=reference):
            return [reference] if reference.tag is not None else []
        case ArchivePlace(reference=str(name)):
            return _references([name])
        case ArchivePlace(path):
            return _references(_archived(TarIndex.of(path)))
        case _:
            return []


def _archived(index: TarIndex) -> list[str]:
    """The names of the only image of an archive."""
    if MANIFEST_NAME in index:
        images = _INDEXES.decode(index.read(MANIFEST_NAME, DOCUMENT_LIMIT))
        return (images[0].repo_tags or []) if len(images) == 1 else []
    entries = parse_index(index.read("index.json", DOCUMENT_LIMIT), types=INDEX_TYPES | MANIFEST_TYPES)
    if len({entry.descriptor.digest for entry in entries}) != 1:
        return []
    return list(dict.fromkeys(name for entry in entries for name in names_of(entry.descriptor)))


def _references(names: list[str]) -> list[Reference]:
    found = {}
    for name in names:
        try:
            reference = parse_reference(name)
        except InvalidReference:
            continue
        # A tag alone, as index.json may have it, looks like a name.
        if ":" in name and reference.tag is not None:
            found[str(reference)] = reference
    return list(found.values())
