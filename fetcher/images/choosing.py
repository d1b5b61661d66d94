"""From what a source names to the image for one platform, through indexes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fetcher.errors import FormatError, SourceNotFound
from fetcher.images.seams import ImageSource
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Document,
    Manifest,
    Platform,
    choose_manifest,
    parse_config_platform,
    parse_index,
    parse_manifest,
)
from fetcher.reference import short_digest

_NESTING_LIMIT: Final = 4


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """An image for one platform. `root` is what the source names: `manifest` itself, or an index above it."""

    root: Document
    manifest: Document
    parsed: Manifest


async def choose_image(source: ImageSource, platform: Platform | None) -> ChosenImage:
    """The image of `source` for `platform`, or for this machine.

    An image that no index lists has to be for the platform that was asked for; it is taken for any, if none
    was. Raises SourceNotFound if there is none for the platform, and any FetchError of the source.
    """
    wanted = platform or Platform.host()
    root = document = await source.root()
    for depth in range(_NESTING_LIMIT + 1):
        try:
            if document.media_type in MANIFEST_TYPES:
                parsed = parse_manifest(document.data)
                if not depth and platform is not None:
                    await _check_config(source, parsed, platform)
                return ChosenImage(root, document, parsed)
            entries = parse_index(document.data, types=INDEX_TYPES | MANIFEST_TYPES)
        except FormatError as error:
            raise FormatError(f"{source.name}: {short_digest(document.digest)} is {error}") from error
        chosen = choose_manifest(entries, wanted)
        if chosen is None:
            raise _none_for(source, wanted, {str(entry.platform) for entry in entries if entry.platform})
        document = await source.document(chosen)
    raise FormatError(f"{source.name} has more than {_NESTING_LIMIT} indexes within each other")


async def _check_config(source: ImageSource, manifest: Manifest, platform: Platform) -> None:
    config = await source.document(manifest.config)
    found = parse_config_platform(config.data)
    if found is not None and platform.rank(found) is None:
        raise _none_for(source, platform, {str(found)})


def _none_for(source: ImageSource, platform: Platform, offered: set[str]) -> SourceNotFound:
    there = ", ".join(sorted(offered)) or "none with a platform"
    return SourceNotFound(f"{source.name} has no image for {platform}; there is: {there}")
