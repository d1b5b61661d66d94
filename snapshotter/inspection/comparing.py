"""Where two images differ: their trees, layers and what is before their landmarks. Pure; no I/O.

The structs are the JSON of `layergate compare`: fields are added, never renamed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from fetcher.nodes import Kind
from snapshotter.inspection.contents import Contents, prefetched
from snapshotter.inspection.merging import Seen, Tree, layer_tree, merged_tree

Value = int | str | list[str] | dict[str, str] | None


class Change(msgspec.Struct, frozen=True):
    """One aspect of a path on both sides. The aspect "kind" stands alone: there, None means no such path."""

    aspect: str
    a: Value
    b: Value


class Difference(msgspec.Struct, frozen=True):
    """A path, "" for the root, that is not the same on both sides."""

    path: str
    changes: list[Change]


class LayerSide(msgspec.Struct, frozen=True):
    """A layer of one side; sizes in bytes, `files_bytes` those of its files."""

    digest: str | None
    size: int
    format: str
    entries: int
    files_bytes: int
    toc_digest: str | None
    landmark: str | None
    prefetch_bytes: int
    """Of the blob, up to the landmark."""
    prefetch_files: list[str]
    """In the blob's order."""


class LayerPair(msgspec.Struct, frozen=True):
    """The layers of one number on both sides, None where a side has fewer."""

    number: int
    a: LayerSide | None
    b: LayerSide | None
    equal: bool
    """Whether their trees are."""
    differences: list[Difference]


class ImageSide(msgspec.Struct, frozen=True):
    """One side as a whole: `size` of all its layers, `entries` and `files_bytes` of the merged tree."""

    source: str
    manifest: str | None
    size: int
    entries: int
    files_bytes: int


class Comparison(msgspec.Struct, frozen=True):
    """`equal` says whether a container would see the same; `differences` where not."""

    a: ImageSide
    b: ImageSide
    equal: bool
    differences: list[Difference]
    layers: list[LayerPair]


@dataclass(frozen=True, slots=True)
class ReadImage:
    """An image whose layers were looked into, from the bottom up."""

    source: str
    manifest: str | None
    layers: Sequence[Contents]


def compare_images(a: ReadImage, b: ReadImage) -> Comparison:
    """Compare by what the layers hold; identical layers are taken as such."""
    merged = [merged_tree([(layer.tree, layer.digests) for layer in side.layers]) for side in (a, b)]
    differences = tree_differences(*merged)
    return Comparison(
        a=_image_side(a, merged[0]),
        b=_image_side(b, merged[1]),
        equal=not differences,
        differences=differences,
        layers=[_pair(number, *pair) for number, pair in enumerate(zip_longest(a.layers, b.layers), start=1)],
    )


def tree_differences(a: Tree, b: Tree) -> list[Difference]:
    """Every path that is not the same in both, in the order of the paths."""
    found = []
    for path in sorted(a.keys() | b.keys()):
        if changes := _changes(a.get(path), b.get(path)):
            found.append(Difference(path, changes))
    return found


def _changes(a: Seen | None, b: Seen | None) -> list[Change]:
    if a is None or b is None or a.kind is not b.kind:
        return [Change("kind", None if a is None else a.kind.value, None if b is None else b.kind.value)]
    if a == b:
        return []
    ours, theirs = _aspects(a), _aspects(b)
    return [Change(aspect, ours[aspect], theirs[aspect]) for aspect in ours if ours[aspect] != theirs[aspect]]


def _aspects(seen: Seen) -> dict[str, Value]:
    return {
        "mode": f"{seen.mode:04o}",
        "uid": seen.uid,
        "gid": seen.gid,
        "mtime": seen.mtime,
        "size": seen.size,
        "content": seen.digest,
        "target": seen.target,
        "device": f"{seen.device[0]}:{seen.device[1]}",
        "xattrs": {name: base64.b64encode(value).decode() for name, value in sorted(seen.xattrs.items())},
        "opaque": str(seen.opaque).lower(),
        "links": list(seen.links),
    }


def _pair(number: int, a: Contents | None, b: Contents | None) -> LayerPair:
    differences = []
    if a is not None and b is not None and a.tree is not b.tree:
        differences = tree_differences(layer_tree(a.tree, a.digests), layer_tree(b.tree, b.digests))
    return LayerPair(
        number=number,
        a=None if a is None else _layer_side(a),
        b=None if b is None else _layer_side(b),
        equal=a is not None and b is not None and not differences,
        differences=differences,
    )


def _layer_side(layer: Contents) -> LayerSide:
    toc = layer.toc
    return LayerSide(
        digest=layer.digest,
        size=layer.size,
        format=layer.format,
        entries=len(layer.tree.nodes),
        files_bytes=sum(node.size for node in layer.tree.inodes()),
        toc_digest=None if toc is None else toc.digest,
        landmark=None if toc is None else toc.landmark,
        prefetch_bytes=0 if toc is None else toc.tree.landmark or 0,
        prefetch_files=[] if toc is None else [node.path for node in prefetched(toc)],
    )


def _image_side(image: ReadImage, merged: Tree) -> ImageSide:
    inodes = {seen.links or (path,): seen for path, seen in merged.items() if seen.kind is Kind.REGULAR}
    return ImageSide(
        source=image.source,
        manifest=image.manifest,
        size=sum(layer.size for layer in image.layers),
        entries=len(merged),
        files_bytes=sum(seen.size for seen in inodes.values()),
    )
