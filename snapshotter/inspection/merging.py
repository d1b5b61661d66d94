"""What a container sees of an image's layers: one tree. Pure; no I/O.

As an unpacker goes about it, from the bottom up: whiteouts and opaque directories hide what lies below, what
is no directory takes the place of a directory with all that is in it, and a directory without an entry of
its own keeps what the layers below say of it.
"""

from __future__ import annotations

import msgspec

from fetcher.nodes import Kind, Node
from fetcher.tree import LayerTree


class Seen(msgspec.Struct, frozen=True):
    """One path as it is seen; what a kind of node does not have is empty.

    `mtime` is in seconds, `mode` without type bits, `links` are all paths of its inode where it has several.
    """

    kind: Kind
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: str
    device: tuple[int, int]
    xattrs: dict[str, bytes]
    digest: str
    opaque: bool
    links: tuple[str, ...]


Tree = dict[str, Seen]
"""What is seen by path; "" is the root."""


def layer_tree(tree: LayerTree, digests: dict[str, str]) -> Tree:
    """One layer by itself, with its whiteouts. `digests` are those of the files, by their nodes' paths."""
    return {
        path: _seen(node, digests, tuple(sorted((node.path, *node.links))) if node.links else ())
        for path, node in tree.nodes.items()
    }


def merged_tree(layers: list[tuple[LayerTree, dict[str, str]]]) -> Tree:
    """All layers together, from the bottom up."""
    merged: dict[str, tuple[int, Node]] = {}
    for number, (tree, _) in enumerate(layers):
        _cover(merged, tree)
        implied = set(tree.implied)
        if _is_bare(tree.nodes[""]):
            implied.add("")
        for path, node in tree.nodes.items():
            if node.kind is not Kind.WHITEOUT and not (path in implied and path in merged):
                merged[path] = (number, node)
    inodes: dict[tuple[int, str], list[str]] = {}
    for path, (number, node) in merged.items():
        if node.links:
            inodes.setdefault((number, node.path), []).append(path)
    found = {}
    for path in sorted(merged):
        number, node = merged[path]
        paths = inodes.get((number, node.path), [])
        seen = _seen(node, layers[number][1], tuple(sorted(paths)) if len(paths) > 1 else ())
        # That it hid something is no part of what is seen.
        found[path] = msgspec.structs.replace(seen, opaque=False) if seen.opaque else seen
    return found


def _is_bare(root: Node) -> bool:
    """Whether a root is as one without an entry of its own."""
    return (root.mode, root.uid, root.gid, root.mtime, root.xattrs) == (0o755, 0, 0, 0, {})


def _cover(merged: dict[str, tuple[int, Node]], tree: LayerTree) -> None:
    """Take out of `merged` what the next layer hides."""
    gone = {path for path, node in tree.nodes.items() if _replaces(merged, path, node)}
    emptied = {path for path, node in tree.nodes.items() if node.opaque}
    if not gone and not emptied:
        return
    for path in [path for path in merged if _is_hidden(path, gone, emptied)]:
        del merged[path]


def _replaces(merged: dict[str, tuple[int, Node]], path: str, node: Node) -> bool:
    below = merged.get(path)
    return below is not None and (node.kind is Kind.WHITEOUT or node.kind is not below[1].kind)


def _is_hidden(path: str, gone: set[str], emptied: set[str]) -> bool:
    if path in gone:
        return True
    parent = path
    while parent:
        parent = parent.rpartition("/")[0]
        if parent in gone or parent in emptied:
            return True
    return False


def _seen(node: Node, digests: dict[str, str], links: tuple[str, ...]) -> Seen:
    return Seen(
        kind=node.kind,
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime=node.mtime,
        size=node.size,
        target=node.target,
        device=(node.major, node.minor),
        xattrs=node.xattrs,
        digest=digests.get(node.path, ""),
        opaque=node.opaque,
        links=links,
    )
