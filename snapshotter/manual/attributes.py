"""Directories that a merged tree shows otherwise than an unpacked image, and the tree that mends it.

A layer may have files in a directory that it has no entry for. An unpacker lets such a directory take over
mode, owner and xattrs of the one that it stands on (containerd's `archive.Apply`); in a layer by itself it
has 0755 and root, and overlayfs shows a directory as the uppermost layer has it. So an uppermost layer is
laid over the others, of directories alone, which have the attributes that an unpacker would have given them.

`taken_over` is pure; `make_above` writes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

import msgspec

from fetcher.nodes import Kind, Node
from fetcher.plain import set_attributes
from fetcher.tree import LayerTree

_LINKS_LIMIT: Final = 255
"""Symlinks in one path, after which it counts as one that leads nowhere."""


def taken_over(trees: Sequence[LayerTree]) -> list[Node]:
    """The directories of such an uppermost layer, parents before children; [] where none is needed.

    `trees` are those of an image's distinct layers, the uppermost first.
    """
    return _Image(trees).taken_over()


def has_plain_root(directory: str) -> bool:
    """Whether a layer's directory has an unpacked image's root. Raises OSError."""
    status = os.stat(directory)
    xattrs = any(not name.startswith("trusted.overlay.") for name in os.listxattr(directory))
    return (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, xattrs) == (0o755, 0, 0, False)


def make_above(directory: str, nodes: Sequence[Node]) -> None:
    """Make the uppermost layer at `directory`; `nodes` are `taken_over`'s. Raises OSError."""
    for node in nodes:
        os.mkdir(os.path.join(directory, node.path), 0o700)
    for node in reversed(nodes):
        fd = os.open(os.path.join(directory, node.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            set_attributes(fd, node)
        finally:
            os.close(fd)


class _Image:
    def __init__(self, trees: Sequence[LayerTree]) -> None:
        self._trees = trees
        self._implied = [frozenset(tree.implied) for tree in trees]

    def taken_over(self) -> list[Node]:
        found: dict[str, Node] = {}
        top = self._trees[0].nodes[""]
        root = Node("", Kind.DIRECTORY, mtime=top.mtime)
        if not _same_look(root, top):
            found[""] = root
        for number, tree in enumerate(self._trees[:-1]):
            for path in tree.implied:
                if not self._is_covered(path, number):
                    node = self._dressed(number, path)
                    if not _same_look(node, tree.nodes[path]):
                        found[path] = node
        for path in list(found):
            found.setdefault("", root)
            for parent in _parents(path):
                if parent not in found:
                    found[parent] = self._dressed(self._uppermost(parent), parent)
        return [found[path] for path in sorted(found)]

    def _is_covered(self, path: str, number: int) -> bool:
        """Whether a layer above the one with this number has a say in what is at `path`."""
        return any(
            path in tree.nodes or any(_hides(tree, parent) for parent in _parents(path))
            for tree in self._trees[:number]
        )

    def _uppermost(self, path: str) -> int:
        return next(number for number, tree in enumerate(self._trees) if path in tree.nodes)

    def _dressed(self, number: int, path: str) -> Node:
        """The directory at `path` of a layer, as it would look unpacked on those below."""
        bare = self._trees[number].nodes[path]
        if path not in self._implied[number]:
            return msgspec.structs.replace(bare, opaque=False)
        for below, tree in enumerate(self._trees[number + 1 :], start=number + 1):
            end = _followed(tree, path)
            if end is None:
                continue
            if tree.nodes[end].kind is not Kind.DIRECTORY:
                break  # replaced as a whole
            return msgspec.structs.replace(self._dressed(below, end), path=path)
        return bare


def _same_look(one: Node, other: Node) -> bool:
    return (one.mode, one.uid, one.gid, one.xattrs) == (other.mode, other.uid, other.gid, other.xattrs)


def _hides(tree: LayerTree, path: str) -> bool:
    """Whether nothing of the layers below is seen in the directory `path`."""
    node = tree.nodes.get(path)
    return node is not None and (node.kind is not Kind.DIRECTORY or node.opaque)


def _parents(path: str) -> list[str]:
    """Every directory above `path`, the root included."""
    return ["", *(path[:end] for end, letter in enumerate(path) if letter == "/")] if path else []


def _followed(tree: LayerTree, path: str) -> str | None:
    """Where `path` leads within one layer, symlinks followed; None if the layer says nothing of it.

    What stands in the way and is no directory, a whiteout or a file, is where it ends.
    """
    pending = path.split("/")[::-1]
    here = ""
    links = 0
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            here = here.rpartition("/")[0]
            continue
        step = f"{here}/{name}" if here else name
        node = tree.nodes.get(step)
        if node is None:
            return None
        if node.kind is Kind.SYMLINK and links < _LINKS_LIMIT:
            links += 1
            here = "" if node.target.startswith("/") else here
            pending += node.target.split("/")[::-1]
        elif node.kind is not Kind.DIRECTORY:
            return step
        else:
            here = step
    return here
