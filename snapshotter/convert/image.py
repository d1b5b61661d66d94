"""Converting an image from any source to any destination: layers, config, manifest, and the index above.

Nothing is named at the destination before all of it is there. On the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias, TypeVar

import anyio

from fetcher.convert import Compressors
from fetcher.errors import FormatError
from fetcher.images import ImageDestination, ImageSource
from fetcher.images.choosing import choose_image
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Document,
    IndexEntry,
    Manifest,
    Platform,
    parse_diff_ids,
    parse_index,
    parse_manifest,
)
from fetcher.reference import short_digest
from snapshotter.convert.documents import (
    NewLayer,
    descriptor_of,
    rewritten_config,
    rewritten_index,
    rewritten_manifest,
)
from snapshotter.convert.layers import LayerCounts, LayerWork
from snapshotter.convert.media import IMAGE_CONFIGS, oci_layer_type
from snapshotter.convert.progress import ConvertProgress
from snapshotter.convert.source_image import OptionsFor, SourceImage

T = TypeVar("T")

_NESTING_LIMIT: Final = 4
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"
"""An index's entry with this annotation is about another one: an attestation, say."""


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """What a conversion has written."""

    root: Document
    layers: LayerCounts


async def convert_image(
    source: ImageSource,
    destination: ImageDestination,
    *,
    options_for: OptionsFor,
    platform: Platform | None,
    all_platforms: bool = False,
    compressors: Compressors,
    scratch: str,
    progress: ConvertProgress,
) -> ConvertedImage:
    """Write `source` to `destination`, both of which have been entered, with its layers converted.

    Of an index that is the image for `platform` (None: this machine's) alone; or, with `all_platforms`, every
    image of it, and the index. What else an index lists, attestations say, is copied with it. A layer that
    several images share is converted once. `scratch` is an empty directory.

    Raises FormatError for an image with a layer that cannot be converted, before any is fetched; any other
    FetchError or SnapshotterError of source and destination.
    """
    conversion = _Conversion(
        source,
        destination,
        LayerWork(
            source,
            destination,
            options_for=options_for,
            compressors=compressors,
            scratch=scratch,
            progress=progress,
        ),
    )
    if all_platforms:
        root = await conversion.read(await source.root(), None, 0)
    else:
        chosen = await choose_image(source, platform)
        root = await conversion.read(chosen.manifest, None, 0)
    return await conversion.write(root)


@dataclass(slots=True, eq=False)
class _Index:
    document: Document
    children: list[_Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Image:
    source: SourceImage
    layers: list[NewLayer | None]

    @property
    def document(self) -> Document:
        return self.source.manifest


@dataclass(slots=True, eq=False)
class _Artifact:
    """What is no image: it is copied."""

    document: Document
    parsed: Manifest


_Node: TypeAlias = _Index | _Image | _Artifact


class _Conversion:
    """One conversion: reads all documents, then has all layers converted, then writes all documents."""

    def __init__(self, source: ImageSource, destination: ImageDestination, work: LayerWork) -> None:
        self._source = source
        self._destination = destination
        self._work = work
        self._images: list[_Image] = []
        self._artifacts: list[_Artifact] = []

    async def read(self, document: Document, entry: IndexEntry | None, depth: int) -> _Node:
        """The tree of documents below one, each checked; `entry` is what an index says of it."""
        if document.media_type in INDEX_TYPES:
            return await self._read_index(document, depth)
        parsed = self._parsed(document, parse_manifest)
        if entry is None or _is_image(entry, parsed):
            return await self._read_image(document, parsed)
        artifact = _Artifact(document, parsed)
        self._artifacts.append(artifact)
        return artifact

    async def _read_index(self, document: Document, depth: int) -> _Index:
        if depth == _NESTING_LIMIT:
            raise FormatError(f"{self._source.name} has more than {depth} indexes within each other")
        index = _Index(document)
        for entry in self._parsed(document, partial(parse_index, types=INDEX_TYPES | MANIFEST_TYPES)):
            child = await self._source.document(entry.descriptor)
            index.children.append(await self.read(child, entry, depth + 1))
        return index

    async def _read_image(self, document: Document, parsed: Manifest) -> _Image:
        if parsed.config.media_type not in IMAGE_CONFIGS:
            raise FormatError(
                f"{self._source.name}: {short_digest(document.digest)} is no image of a file system: its "
                f"config is {parsed.config.media_type or 'without a media type'}"
            )
        for number, layer in enumerate(parsed.layers, start=1):
            try:
                oci_layer_type(layer.media_type)
            except FormatError as error:
                raise FormatError(
                    f"{self._source.name}: layer {number}, {short_digest(layer.digest)}: {error}"
                ) from error
        config = await self._source.document(parsed.config)

        async def fetch(number: int) -> str:
            return await self._work.fetch(parsed.layers[number])

        source = SourceImage(
            document, parsed, config, lambda number: self._source.blob(parsed.layers[number]), fetch
        )
        image = _Image(source, [None] * len(parsed.layers))
        count = len(self._parsed(config, parse_diff_ids))
        if count != len(parsed.layers):
            raise FormatError(
                f"{self._source.name}: {short_digest(document.digest)} lists {len(parsed.layers)} layers, "
                f"and its config {count}: the image is damaged"
            )
        self._images.append(image)
        return image

    def _parsed(self, document: Document, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(document.data)
        except FormatError as error:
            raise FormatError(f"{self._source.name}: {short_digest(document.digest)} is {error}") from error

    async def write(self, root: _Node) -> ConvertedImage:
        """Convert all layers, and write everything with the name last."""
        self._work.expect([image.source for image in self._images])
        async with anyio.create_task_group() as group:
            for image in self._images:
                for number in range(len(image.layers)):
                    group.start_soon(self._convert_layer, image, number)
            for artifact in self._artifacts:
                group.start_soon(self._copy, artifact)
        document = await self._written(root)
        await self._destination.finish(document)
        return ConvertedImage(document, self._work.counts())

    async def _convert_layer(self, image: _Image, number: int) -> None:
        image.layers[number] = await self._work.convert(image.source, number)

    async def _copy(self, artifact: _Artifact) -> None:
        for descriptor in (artifact.parsed.config, *artifact.parsed.layers):
            await self._work.copy(descriptor)

    async def _written(self, node: _Node) -> Document:
        """The new document for one, when everything below it is at the destination."""
        if isinstance(node, _Artifact):
            return node.document
        if isinstance(node, _Image):
            return await self._written_image(node)
        new: dict[str, Document] = {}
        for child in node.children:
            written = await self._written(child)
            await self._destination.put_bytes(descriptor_of(written), written.data)
            if written.digest != child.document.digest:
                new[child.document.digest] = written
        return rewritten_index(node.document, new) if new else node.document

    async def _written_image(self, image: _Image) -> Document:
        layers = [layer for layer in image.layers if layer is not None]
        manifest, config = image.source.manifest, image.source.config
        if any(layer.diff_id is not None for layer in layers):
            config = rewritten_config(config, layers)
            manifest = rewritten_manifest(manifest, config, layers)
            descriptor = descriptor_of(config)
        else:
            descriptor = image.source.parsed.config
        if not await self._destination.has(descriptor):
            await self._destination.put_bytes(descriptor, config.data)
        return manifest


def _is_image(entry: IndexEntry, manifest: Manifest) -> bool:
    """Whether an index's entry is an image of a file system, and not about one."""
    if _REFERENCE_TYPE in entry.descriptor.annotations or str(entry.platform) == "unknown/unknown":
        return False
    return manifest.config.media_type in IMAGE_CONFIGS
