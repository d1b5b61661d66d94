"""What is in a layer by its tar alone: a LayerTree without places in a blob. Pure; no I/O.

For layers that have no table of contents, to know which layer of an image provides a file. Names follow
the rules of `fetcher.tree`; where that refuses a layer, this takes what can be taken: a listing decides what
comes first in a layer, not what is in it.
"""

from __future__ import annotations

import posixpath
import tarfile
from typing import Final

from fetcher.nodes import Kind, Node
from fetcher.toc import TOC_NAME
from fetcher.tree import LANDMARK, NO_LANDMARK, LayerTree

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_AUFS: Final = ".wh..wh."
_HIDDEN: Final = frozenset({LANDMARK, NO_LANDMARK, TOC_NAME})
_KINDS: Final = {
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.FIFOTYPE: Kind.FIFO,
}


def clean_path(name: str) -> str:
    """A name of a tar as the path of what it names: no leading slash, "" for the root, never outside."""
    return posixpath.normpath("/" + name).lstrip("/")


class Listing:
    """Entries of one tar, added in its order."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {"": Node("", Kind.DIRECTORY)}
        self._opaque: list[str] = []

    def add(self, entry: tarfile.TarInfo) -> Node | None:
        """Take an entry; the node that its path has now, None for what is no part of the tree.

        An opaque directory's mark is none, nor are hard links to what the layer lacks.
        """
        path = clean_path(entry.name)
        directory, _, name = path.rpartition("/")
        if path in _HIDDEN or (not path and not entry.isdir()):
            return None
        if name == _OPAQUE:
            self._opaque.append(directory)
            return None
        if name.startswith(_AUFS):
            return None
        if name.startswith(_WHITEOUT):
            hidden = posixpath.join(directory, name.removeprefix(_WHITEOUT))
            if hidden in self._nodes:
                return None
            node = Node(hidden, Kind.WHITEOUT)
        elif entry.islnk():
            target = self._nodes.get(clean_path(entry.linkname))
            if target is None or target.kind is Kind.DIRECTORY:
                return None
            node = target
            node.links = [*node.links, path]
            self._put(path, node)
            return node
        else:
            node = Node(path, _KINDS.get(entry.type, Kind.REGULAR), entry.mode & 0o7777)
            node.size = entry.size if node.kind is Kind.REGULAR else 0
            node.target = entry.linkname if node.kind is Kind.SYMLINK else ""
            if node.kind is Kind.CHARACTER and not entry.devmajor and not entry.devminor:
                node.kind = Kind.WHITEOUT
        self._put(node.path, node)
        return node

    def tree(self) -> LayerTree:
        """The tree of all that was added, parents before children."""
        for path in self._opaque:
            self._nodes.setdefault(path, Node(path, Kind.DIRECTORY)).opaque = True
        ordered: dict[str, Node] = {}
        for path, node in self._nodes.items():
            for end, letter in enumerate(path):
                if letter == "/" and (parent := path[:end]) not in ordered:
                    ordered[parent] = self._nodes.get(parent) or Node(parent, Kind.DIRECTORY)
            ordered[path] = node
        return LayerTree(ordered, [], landmark=None, end=0)

    def _put(self, path: str, node: Node) -> None:
        """The last entry of a name wins, in its place of the order too."""
        self._nodes.pop(path, None)
        self._nodes[path] = node
