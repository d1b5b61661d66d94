"""What is in a layer: its tree, its table of contents if it has one, and the digest of each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from anyio import to_thread

from fetcher.errors import FormatError, NotEstargz, VerificationError
from fetcher.images.recognition import LONG_HEAD, layer_format
from fetcher.listing import clean_path
from fetcher.nodes import Node
from fetcher.opening import FetchedToc, fetch_toc
from fetcher.sniffing import HEAD, describe_blob
from fetcher.toc import Toc, TocEntry, parse_toc, toc_digest
from fetcher.tree import LANDMARK, NO_LANDMARK, LayerTree, build_tree
from snapshotter.inspection.layers import SourceLayer
from snapshotter.inspection.tar_layer import read_tar_layer

ESTARGZ: Final = "estargz"
ZSTD_CHUNKED: Final = "zstd:chunked"

Progress = Callable[[int], None]
"""Told how many bytes of blobs came since the last time."""


@dataclass(frozen=True, slots=True)
class LayerToc:
    """A layer's table of contents. `matches` says whether its digest is the promised one, if one is.

    `landmark` is "prefetch", "no-prefetch", or "none" where there is no landmark.
    """

    toc: Toc[TocEntry]
    digest: str
    matches: bool | None
    offset: int
    tree: LayerTree
    landmark: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A layer that was looked into. `digests` are those of whole files, by the path of their node.

    `format` is "estargz" or "zstd:chunked", or else that of `fetcher.images.recognition.layer_format`.
    """

    layer: SourceLayer
    digest: str | None
    size: int
    format: str
    toc: LayerToc | None
    tree: LayerTree
    digests: dict[str, str]


@dataclass(frozen=True, slots=True)
class Format:
    """What a layer is: `toc` if it has one, its format's name, and a description of it for people.

    `matches` says whether the TOC has the promised digest, None if none is promised.
    """

    toc: FetchedToc | None
    matches: bool | None
    name: str
    description: str
    size: int


async def read_format(layer: SourceLayer) -> Format:
    """Look at a layer's ends, and fetch its table of contents if it has one. Raises FetchError."""
    matches = None if layer.toc_digest is None else True
    try:
        with _naming(layer):
            try:
                fetched = await fetch_toc(layer.blob, size=layer.size, promised=layer.toc_digest)
            except VerificationError:
                matches = False
                fetched = await fetch_toc(layer.blob, size=layer.size, promised=None)
    except NotEstargz:
        tail, size = await layer.blob.tail(HEAD)
        head = await layer.blob.read(0, min(size, LONG_HEAD))
        return Format(None, None, layer_format(head), describe_blob(head[:HEAD], tail), size)
    if fetched.zstd:
        return Format(fetched, matches, ZSTD_CHUNKED, "a zstd:chunked layer", fetched.blob_size)
    return Format(fetched, matches, ESTARGZ, "an eStargz layer", fetched.blob_size)


async def read_toc(layer: SourceLayer, found: Format) -> LayerToc | None:
    """Take the table of contents apart, if there is one. Raises InvalidToc."""
    with _naming(layer):
        return None if found.toc is None else await to_thread.run_sync(_parsed, found.toc, found.matches)


async def read_contents(layer: SourceLayer, *, whole: bool, progress: Progress) -> Contents:
    """Look into a layer: by its table of contents, or by its whole tar where it has none to be believed.

    `whole` reads the tar in any case, as unpackers do. Raises FetchError.
    """
    found = await read_format(layer)
    toc = await read_toc(layer, found)
    if toc is not None and toc.matches is not False and not whole:
        digests = whole_digests(toc.toc, toc.tree)
        if digests is not None:
            return Contents(layer, layer.digest, found.size, found.name, toc, toc.tree, digests)
    tar = await read_tar_layer(
        layer.blob, name=_name(layer), digest=layer.digest, size=found.size, progress=progress
    )
    with _naming(layer):
        tree = await to_thread.run_sync(_tree, tar.toc, tar.end)
    digests = whole_digests(tar.toc, tree)
    assert digests is not None, "each file of a tar has got its digest"
    return Contents(layer, tar.digest, found.size, found.name, toc, tree, digests)


def prefetched(toc: LayerToc) -> list[Node]:
    """The files that lie before the landmark whole or in part, in the blob's order."""
    if toc.tree.landmark is None:
        return []
    found: dict[str, Node] = {}
    for member in toc.tree.members:
        if member.offset >= toc.tree.landmark:
            break
        found |= {node.path: node for node, _ in member.pieces}
    return list(found.values())


def whole_digests(toc: Toc[TocEntry], tree: LayerTree) -> dict[str, str] | None:
    """The digests of whole files by the path of their node; None if the table lacks one."""
    promised = promised_digests(toc)
    found = {}
    for node in tree.regular_files():
        digest = promised.get(node.path)
        if not digest and len(node.chunks) == 1:
            digest = f"sha256:{node.chunks[0].digest.hex()}"
        if not digest:
            return None
        found[node.path] = digest
    return found


def promised_digests(toc: Toc[TocEntry]) -> dict[str, str]:
    """The digests that the table gives whole files, by clean path; "" where it gives none."""
    # Of a name that comes twice the last wins.
    return {clean_path(entry.name): entry.digest for entry in toc.entries if entry.type == "reg"}


@contextmanager
def _naming(layer: SourceLayer) -> Iterator[None]:
    """Have errors of the format say which layer they are about."""
    try:
        yield
    except FormatError as error:
        raise type(error)(f"{_name(layer)}: {error}") from error


def _name(layer: SourceLayer) -> str:
    return f"layer {layer.number}" if layer.digest is None else f"layer {layer.number} ({layer.digest})"


def _tree(toc: Toc[TocEntry], end: int) -> LayerTree:
    return build_tree(toc, end=end)


def _parsed(fetched: FetchedToc, matches: bool | None) -> LayerToc:
    toc = parse_toc(fetched.kept)
    names = {clean_path(entry.name) for entry in toc.entries}
    landmark = "no-prefetch" if NO_LANDMARK in names else "prefetch" if LANDMARK in names else "none"
    return LayerToc(
        toc=toc,
        digest=toc_digest(fetched.kept),
        matches=matches,
        offset=fetched.offset,
        tree=build_tree(toc, end=fetched.offset),
        landmark=landmark,
    )
