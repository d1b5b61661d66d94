"""Whether a layer that was made for itself looks on its chain as one that was unpacked there.

A layer's tree is shared by all chains that have it, and some of what an unpacker does depends on the
layers below (containerd's `archive.Apply`):

- A directory without an entry of its own takes over mode, owner and xattrs of the directory that it
  stands on. A layer by itself gives it 0755 and root.
- At the bottom of an image whiteouts hide nothing, and are not kept. overlayfs lists those of a directory
  that no other layer has.

Such a layer is unpacked the ordinary way where that makes a difference. Blocking; reads what is here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from fetcher.nodes import Kind
from fetcher.store import LayerStore
from fetcher.tree import LayerTree
from snapshotter.lowers import LazyLink, Link

_IMPLIED = (0o755, 0, 0, False)
"""Mode, owner, group, and whether there are xattrs."""
_FOLLOWED = (0o777, 0, 0, False)
"""A symlink: nothing that a directory by itself could look like."""


def why_unfit(store: LayerStore, layer: str, below: Sequence[Link]) -> str | None:
    """Why the layer would look different on `below`, its parent first; None if it would not.

    Raises FetchError where a layer's record or tree cannot be read.
    """
    shape = store.shape(layer)
    if not below:
        return "it has whiteouts, and nothing is below it" if shape.whiteouts else None
    if shape.implied is None:
        return "too many of its directories have no entry"
    if not shape.implied:
        return None
    trees: dict[str, LayerTree] = {}
    missing = set(shape.implied)
    for link in below:
        for path in sorted(missing):
            found = _attributes(store, link, path, trees)
            if found is None:
                continue
            missing.remove(path)
            if found != _IMPLIED:
                return f"the directory {path!r} has no entry in it, and other attributes below"
    return None


def _attributes(
    store: LayerStore, link: Link, path: str, trees: dict[str, LayerTree]
) -> tuple[int, int, int, bool] | None:
    """A directory's attributes in one layer; None if the layer says nothing of the path.

    What is no directory is replaced as a whole, so it counts as one of the default attributes; but an
    unpacker follows a symlink, which is not looked into here.
    """
    if isinstance(link, LazyLink):
        if link.layer not in trees:
            trees[link.layer] = store.tree(link.layer)
        node = trees[link.layer].nodes.get(path)
        if node is None:
            return None
        if node.kind is not Kind.DIRECTORY:
            return _FOLLOWED if node.kind is Kind.SYMLINK else _IMPLIED
        return node.mode, node.uid, node.gid, bool(node.xattrs)
    full = os.path.join(link.path, path)
    try:
        status = os.lstat(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISDIR(status.st_mode):
        return _FOLLOWED if stat.S_ISLNK(status.st_mode) else _IMPLIED
    xattrs = any(not name.startswith("trusted.overlay.") for name in os.listxattr(full))
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, xattrs
