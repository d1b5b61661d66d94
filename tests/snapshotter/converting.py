"""Sources and destinations in memory for conversions, and images whose layers are plain tars."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fetcher.blob import Blob, FileBlob
from fetcher.convert import Compressors, LayerFormat, LayerOptions
from fetcher.errors import SourceNotFound
from fetcher.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Document,
)
from snapshotter.convert.progress import LayerState
from snapshotter.convert.source_image import SourceImage
from tests import oci
from tests.estargz import Layer

Json = dict[str, Any]
"""Documents come from everywhere; tests look into them as they are."""


def encoded(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


@dataclass(slots=True)
class Shelf:
    """Documents and blobs by digest."""

    media_types: dict[str, str] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)

    def add(self, data: bytes, media_type: str) -> Json:
        """Put something there; its descriptor."""
        name = oci.digest(data)
        self.content[name] = data
        self.media_types[name] = media_type
        return {"mediaType": media_type, "digest": name, "size": len(data)}

    def image(
        self,
        layers: list[Layer],
        *,
        config: Mapping[str, object] | None = None,
        annotate: bool = False,
        docker: bool = False,
        uncompressed: bool = False,
    ) -> Json:
        """An image of the layers, with things in it that nobody knows; its descriptor."""
        described = []
        for layer in layers:
            data = gzip.decompress(layer.blob) if uncompressed else layer.blob
            media_type = DOCKER_LAYER + ".gzip" if docker else oci_layer(compressed=not uncompressed)
            entry = self.add(data, media_type)
            notes = {"org.example.note": "kept"} | (layer.annotations if annotate else {})
            described.append({**entry, "annotations": notes, "x-unknown": 1})
        image_config = {
            "architecture": oci.ARCHITECTURE,
            "os": "linux",
            "config": {"Env": ["A=<&>\u2603"], "Labels": {"b": "1", "a": "2"}},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created_by": "x", "empty_layer": True}, {"created_by": "y"}],
            **(config or {}),
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": self.add(encoded(image_config), DOCKER_CONFIG if docker else oci.CONFIG),
            "layers": described,
            "annotations": {"org.example.of": "the manifest"},
        }
        return self.add(encoded(manifest), DOCKER_MANIFEST if docker else OCI_MANIFEST)

    def index(self, *entries: Json, docker: bool = False) -> Json:
        """An index; its descriptor."""
        media_type = DOCKER_LIST if docker else OCI_INDEX
        value = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
        return self.add(encoded(value | {"annotations": {"org.example.of": "the index"}}), media_type)

    def json(self, digest: object) -> Json:
        """A document's value."""
        value = json.loads(self.content[str(digest)])
        assert isinstance(value, dict)
        return value


def oci_layer(*, compressed: bool) -> str:
    return "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compressed else "")


def for_platform(entry: Json, architecture: str = oci.ARCHITECTURE) -> Json:
    """An index's entry for an image."""
    return {**entry, "platform": {"os": "linux", "architecture": architecture}}


class MemorySource:
    """See ImageSource; what it is asked for is noted."""

    def __init__(self, shelf: Shelf, root: Json, directory: Path) -> None:
        self._shelf = shelf
        self._root = str(root["digest"])
        self._directory = directory
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return "memory"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def root(self) -> Document:
        return self._document(self._root)

    async def document(self, descriptor: Descriptor) -> Document:
        return self._document(descriptor.digest)

    def blob(self, descriptor: Descriptor) -> Blob:
        if descriptor.digest not in self._shelf.content:
            raise SourceNotFound(f"no blob {descriptor.digest}")
        self.asked.append(descriptor.digest)
        path = self._directory / descriptor.digest.replace(":", "-")
        path.write_bytes(self._shelf.content[descriptor.digest])
        return FileBlob(str(path))

    def _document(self, digest: str) -> Document:
        return Document(digest, self._shelf.media_types[digest], self._shelf.content[digest])


class MemoryDestination:
    """See ImageDestination; `shelf` has what came, `order` the digests in the order of coming."""

    def __init__(self, *, refuse: Callable[[Descriptor], Awaitable[None]] | None = None) -> None:
        self.shelf = Shelf()
        self.order: list[str] = []
        self.finished: Document | None = None
        self._refuse = refuse

    @property
    def name(self) -> str:
        return "memory"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def has(self, descriptor: Descriptor) -> bool:
        return descriptor.digest in self.shelf.content

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        if self._refuse is not None:
            await self._refuse(descriptor)
        self._take(descriptor, Path(path).read_bytes())

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        self._take(descriptor, data)

    async def finish(self, root: Document) -> None:
        self.shelf.add(root.data, root.media_type)
        self.order.append(root.digest)
        self.finished = root

    def _take(self, descriptor: Descriptor, data: bytes) -> None:
        assert oci.digest(data) == descriptor.digest
        assert len(data) == descriptor.size
        self.shelf.add(data, descriptor.media_type)
        self.order.append(descriptor.digest)

    @property
    def root(self) -> Json:
        """The value of what was finished."""
        assert self.finished is not None
        return self.shelf.json(self.finished.digest)


class Watcher:
    """See ConvertProgress; everything is noted."""

    def __init__(self) -> None:
        self.known: list[Descriptor] = []
        self.states: dict[int, list[LayerState]] = {}
        self.counts: dict[tuple[int, LayerState], list[int]] = {}
        self.totals: dict[tuple[int, LayerState], int] = {}

    def layers(self, layers: Sequence[Descriptor]) -> None:
        self.known = list(layers)

    def state(self, number: int, state: LayerState, blob: Descriptor) -> None:
        self.states.setdefault(number, []).append(state)
        self.totals[number, state] = blob.size

    def done(self, number: int, count: int) -> None:
        self.counts.setdefault((number, self.states[number][-1]), []).append(count)

    def sent(self, digest: str, count: int) -> None:
        """Nothing here sends."""


def always(options: LayerOptions | None) -> Callable[[SourceImage, int], Awaitable[LayerOptions | None]]:
    """An OptionsFor with one answer."""

    async def answer(image: SourceImage, number: int) -> LayerOptions | None:
        return options

    return answer


FAST = LayerOptions(format=LayerFormat.ESTARGZ, level=1)


@contextmanager
def compressing() -> Iterator[Compressors]:
    with Compressors(1) as compressors:
        yield compressors
