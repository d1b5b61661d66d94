"""Opens of files that are not here yet: small ones one by one, and a large one read from start to end."""

from __future__ import annotations

import contextlib
import http.client
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from fetcher.nodes import Kind, Node
from fetcher.store import LayerStore
from fetcher.tree import LayerTree
from scripts.benchmark.engines import Lazy
from scripts.benchmark.host import Cores
from scripts.benchmark.link import Link
from scripts.benchmark.pulls import settle
from scripts.benchmark.registry import FarRegistry, PushedImage
from tests.integration.harness import Container, call

_SMALL: Final = 64 << 10
_APART: Final = 64 << 10
"""Compressed bytes between two files that are opened: what comes along with a file is no miss."""
_OPENS: Final = 200
_PAUSE_SECONDS: Final = 0.1
_BLOCK: Final = 1 << 20
_START_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Opens:
    """Opens of small missing files in a container, one at a time."""

    image: str
    streaming: bool
    """Whether the background fetcher was at work all the while."""
    mbit_per_second: float
    """What came over the link between the opens."""
    opens: list[tuple[float, int]]
    """Seconds that open(2) took, and the file's compressed bytes."""
    asked: list[tuple[float, int]] = field(default_factory=list)
    """The same of a plain HTTP client that asks for these bytes, file after file; not while streaming."""


@dataclass(frozen=True, slots=True)
class LargeRead:
    """A missing file read from start to end, with nothing else going on."""

    image: str
    path: str
    size: int
    compressed: int
    seconds: float
    busy: float
    """Share of all cores that was at work meanwhile, 0 to 1; link and registry are on them, too."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file of one layer: what it takes to miss it."""

    layer: str
    path: str
    size: int
    offset: int
    compressed: int


def open_small_files(
    name: str, engine: Lazy, image: PushedImage, link: Link, registry: FarRegistry, *, streaming: bool
) -> Opens:
    """Pull `image`, which is not here, and open what is missing of it, from the ends of its layers.

    The streams come from the layers' beginnings, and stand back for an open: so that each meets them at full
    speed, they are left alone for a while before it. It ends when they are done, or after 200 opens.
    """
    settle(registry)
    call(engine.pull_command(image.reference))
    store = LayerStore(engine.layergate.root)
    opens: list[tuple[float, int]] = []
    opened: list[Candidate] = []
    paused, received = 0.0, 0
    with engine.containerd.container(image.reference, snapshotter=engine.snapshotter) as container:
        files = list(small_files(_trees(store)))
        root = _started(container)
        for file in files:
            begin, before = time.monotonic(), link.received
            time.sleep(_PAUSE_SECONDS)
            paused, received = paused + time.monotonic() - begin, received + link.received - before
            is_done = all(store.is_complete(layer) for layer in store.layers())
            if len(opens) == _OPENS or is_done:
                break
            # What follows is one stat of ours: it says nothing to overlayfs, nor to the gate.
            if not os.path.lexists(os.path.join(store.fs(file.layer), file.path)):
                opens.append((_opened(os.path.join(root, file.path)), file.compressed))
                opened.append(file)
    digests = {layer: store.record(layer).digest for layer in store.layers()}
    asked = [] if streaming else list(_asked(registry, image, opened, digests))
    return Opens(name, streaming, round(received * 8 / 1e6 / paused, 1), opens, asked)


def read_large_file(name: str, engine: Lazy, image: PushedImage, registry: FarRegistry) -> LargeRead:
    """Pull `image`, of which nothing is streamed or prefetched, and read its largest file."""
    settle(registry)
    call(engine.pull_command(image.reference))
    with engine.containerd.container(image.reference, snapshotter=engine.snapshotter) as container:
        file = largest_file(_trees(LayerStore(engine.layergate.root)))
        root = _started(container)
        cores, begin = Cores(), time.monotonic()
        size = 0
        with open(os.path.join(root, file.path), "rb", buffering=0) as content:
            while block := content.read(_BLOCK):
                size += len(block)
        seconds, busy = time.monotonic() - begin, cores.busy_share()
    if size != file.size:
        raise OSError(f"{file.path}: {size} bytes of {file.size}")
    return LargeRead(name, file.path, file.size, file.compressed, round(seconds, 4), busy)


def small_files(trees: Mapping[str, LayerTree]) -> Iterator[Candidate]:
    """Files of up to 64 KiB, the largest layer's first, each layer's from its end, well apart in the blob."""
    for layer, tree in sorted(trees.items(), key=lambda item: item[1].end, reverse=True):
        begin = tree.end + _APART
        for file in sorted(_files(layer, trees), key=lambda file: file.offset, reverse=True):
            if file.size <= _SMALL and file.offset + file.compressed + _APART <= begin:
                begin = file.offset
                yield file


def largest_file(trees: Mapping[str, LayerTree]) -> Candidate:
    """The file with the most compressed bytes."""
    return max((file for layer in trees for file in _files(layer, trees)), key=lambda file: file.compressed)


def _files(layer: str, trees: Mapping[str, LayerTree]) -> Iterator[Candidate]:
    """What can be opened by its path, whatever the layers' order: files of which no other layer knows."""
    others = [tree for key, tree in trees.items() if key != layer]
    for node in trees[layer].regular_files():
        if node.chunks and not any(_touches(tree, node) for tree in others):
            compressed = sum(chunk.end - chunk.offset for chunk in node.chunks)
            yield Candidate(layer, node.path, node.size, node.chunks[0].offset, compressed)


def _touches(tree: LayerTree, node: Node) -> bool:
    """Whether a layer has, hides or replaces the node or a directory that it is in."""
    path = node.path
    if path in tree.nodes:
        return True
    while path := path.rpartition("/")[0]:
        found = tree.nodes.get(path)
        if found is not None and (found.kind is not Kind.DIRECTORY or found.opaque):
            return True
    return False


def _trees(store: LayerStore) -> dict[str, LayerTree]:
    return {layer: store.tree(layer) for layer in store.layers()}


def _started(container: Container) -> str:
    """The container's root once it is done with its own start."""
    time.sleep(_START_SECONDS)
    return container.root


def _asked(
    registry: FarRegistry, image: PushedImage, files: Iterable[Candidate], digests: Mapping[str, str]
) -> Iterator[tuple[float, int]]:
    """Seconds until the bytes of each file are here, over one connection, and how many they are."""
    connection = http.client.HTTPConnection(registry.host)
    with contextlib.closing(connection):
        for file in files:
            path = f"/v2/{image.repository}/blobs/{digests[file.layer]}"
            wanted = f"bytes={file.offset}-{file.offset + file.compressed - 1}"
            begin = time.perf_counter()
            connection.request("GET", path, headers={"Range": wanted})
            count = len(connection.getresponse().read())
            yield round(time.perf_counter() - begin, 6), count


def _opened(path: str) -> float:
    begin = time.perf_counter()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    seconds = time.perf_counter() - begin
    os.close(file)
    return round(seconds, 6)
