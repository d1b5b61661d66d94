"""From a record and an image's layers to what each layer should begin with. Pure; no I/O.

A recorded path is looked up as a container sees it: symlinks are followed, a whiteout or an opaque directory
hides what is below, and the uppermost layer that has the file provides it.

Large files that are read in part. Everything before the landmark is fetched before a container is
likely to ask, so a file of which little is read delays all that comes after it; left behind, what is needed
of it comes chunk by chunk, one round trip each. Fetching a whole file of n chunks takes n * t, and k of them
on demand k * (t + r), with t the time of a chunk and r that of a round trip. At 1 Gbit/s, with chunks of
1.5 MB packed and r = 50 ms, the latter is faster where k / n < 0.2, at 100 Mbit/s where k / n < 0.7. But
where the gate would bring the file whole, since it comes within seconds, nothing is gained. So a file is
left behind if it has more than LARGE bytes and less than PART of its chunks were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fetcher.nodes import Kind, Node
from fetcher.record import OpenedFile, Range, unite
from fetcher.tree import LayerTree

LARGE: Final = 32 << 20
"""Bytes, unpacked: a smaller file comes whole in any case."""
PART: Final = 0.25
"""Of a large file's chunks; see above."""
_SYMLINKS: Final = 40
"""The kernel's limit in one walk (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class AccessOrder:
    """`layers` are paths inside each layer in the order of first opens, the lowest layer first.

    `unknown` are recorded paths that the image does not have, what containers made for one; `left_behind`
    are large files that are better fetched in part.
    """

    layers: tuple[tuple[str, ...], ...]
    unknown: tuple[str, ...]
    left_behind: tuple[str, ...]


def access_order(files: Sequence[OpenedFile], layers: Sequence[LayerTree], *, chunk_size: int) -> AccessOrder:
    """Find what layer provides each file of a record; `layers` from the lowest up.

    `chunk_size` is what large files will be cut into, in bytes.
    """
    view = _View(layers)
    orders: list[dict[str, None]] = [{} for _ in layers]
    unknown: list[str] = []
    left_behind: list[str] = []
    seen: set[tuple[int, str]] = set()
    for file in files:
        found = view.find(file.path)
        if found is None:
            unknown.append(file.path)
            continue
        layer, path, node = found
        if (layer, node.path) in seen:  # by another name
            continue
        if is_left_behind(node.size, file.ranges, chunk_size=chunk_size):
            left_behind.append(path)
        else:
            seen.add((layer, node.path))
            orders[layer][path] = None
    return AccessOrder(tuple(map(tuple, orders)), tuple(unknown), tuple(left_behind))


def is_left_behind(size: int, ranges: Sequence[Range] | None, *, chunk_size: int) -> bool:
    """Whether a file of `size` bytes, of which `ranges` were read, is better fetched in part."""
    if size <= LARGE or ranges is None:
        return False
    touched = unite(
        (start // chunk_size, -(-min(end, size) // chunk_size)) for start, end in ranges if start < size
    )
    return sum(end - start for start, end in touched) < PART * -(-size // chunk_size)


_Found: TypeAlias = tuple[int, str, Node]
"""A layer, a path inside it, and the node that it has there."""


class _View:
    """The layers merged, as a container sees them."""

    def __init__(self, layers: Sequence[LayerTree]) -> None:
        self._layers = layers
        self._directories: dict[str, tuple[int, ...]] = {"": tuple(reversed(range(len(layers))))}
        """The layers whose directories are merged at a path, the uppermost first; () where there is none."""

    def find(self, path: str) -> _Found | None:
        """The regular file that `path` leads to; None if there is none."""
        todo = path.split("/")[::-1]
        done: list[str] = []
        followed = 0
        while todo:
            name = todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del done[-1:]
                continue
            here = "/".join((*done, name))
            if self._stack(here):
                done.append(name)
                continue
            found = self._uppermost("/".join(done), here)
            if found is None:
                return None
            node = found[2]
            if node.kind is Kind.SYMLINK:
                followed += 1
                if followed > _SYMLINKS:
                    return None
                if node.target.startswith("/"):
                    done.clear()
                todo += node.target.split("/")[::-1]
            elif node.kind is Kind.REGULAR and not any(part not in ("", ".") for part in todo):
                return found
            else:
                return None
        return None

    def _stack(self, path: str) -> tuple[int, ...]:
        known = self._directories.get(path)
        if known is not None:
            return known
        found = []
        for layer in self._stack(path.rpartition("/")[0]):
            node = self._layers[layer].nodes.get(path)
            if node is None:
                continue
            if node.kind is not Kind.DIRECTORY:
                break
            found.append(layer)
            if node.opaque:
                break
        self._directories[path] = tuple(found)
        return self._directories[path]

    def _uppermost(self, directory: str, path: str) -> _Found | None:
        for layer in self._stack(directory):
            node = self._layers[layer].nodes.get(path)
            if node is not None:
                return None if node.kind is Kind.WHITEOUT else (layer, path, node)
        return None
