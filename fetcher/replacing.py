"""Bringing files of a layer once more, and putting them in the place of wrong ones.

The wrong file may be open, or lie below a mounted overlay. So nothing is changed in place: the right one is
written and verified in another directory of the same file system, and renamed over the wrong one. Whoever
has the wrong one open keeps it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterable

from fetcher.blob import Blob
from fetcher.errors import StoreError
from fetcher.nodes import Kind, Node
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.stream import LayerStream
from fetcher.tree import LayerTree


class _Staging(PlainLayer):
    """A plain directory for some nodes of a layer; of all others it says that they are here."""

    def __init__(self, directory: str, tree: LayerTree, nodes: Iterable[Node]) -> None:
        super().__init__(directory, tree)
        self._wanted = {id(node) for node in nodes}

    def has(self, node: Node) -> bool:
        """Whether the node needs no fetching."""
        return id(node) not in self._wanted or super().has(node)


class Replacement:
    """Some nodes of a layer made anew in the directory `staging`, which must not exist; `remove` it after."""

    def __init__(self, plain: PlainLayer, nodes: Collection[Node], *, staging: str) -> None:
        self._plain = plain
        self._nodes = nodes
        self._directory = staging
        self._fresh = _Staging(os.path.join(staging, "fs"), plain.tree, nodes)

    async def fetch(self, blob: Blob) -> None:
        """Bring the content of the regular files, verified; may be repeated from another blob.

        Raises FetchError.
        """
        os.makedirs(self._fresh.directory, mode=0o700, exist_ok=True)
        progress = Progress(os.path.join(self._directory, "progress"))
        stream = LayerStream(blob, self._fresh, progress, counter=Field.FETCHED_BACKGROUND, pause=_go_on)
        await stream.run(0, self._plain.tree.end)
        progress.close()

    def put_in_place(self) -> None:
        """Put what was fetched, and all else that the nodes are, where it belongs, and sync to disk.

        Raises StoreError.
        """
        touched: set[str] = set()
        try:
            for node in self._nodes:
                self._put(node)
                for path in (node.path, *node.links):
                    touched.add(os.path.dirname(path))
            for path in sorted(touched, key=len, reverse=True):
                self._plain.finish_directory(self._plain.tree.nodes[path])
        except OSError as error:
            raise StoreError(
                f"cannot repair below {self._plain.directory}: {error}", errno=error.errno or 0
            ) from error
        self._plain.sync()

    def remove(self) -> None:
        """Remove the staging directory."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _put(self, node: Node) -> None:
        target = self._plain.path(node)
        self._clear(target, directory=node.kind is Kind.DIRECTORY)
        if node.kind is Kind.DIRECTORY:
            os.makedirs(target, exist_ok=True)
            self._plain.finish_directory(node)
            return
        fresh = self._fresh.path(node)
        os.makedirs(os.path.dirname(fresh), exist_ok=True)
        if node.kind is not Kind.REGULAR:
            self._fresh.make_special(node)
        elif not node.size:
            self._fresh.write(node, b"")
        os.rename(fresh, target)
        for link in node.links:
            self._clear(os.path.join(self._plain.directory, link), directory=False)
            os.link(target, fresh, follow_symlinks=False)
            os.rename(fresh, os.path.join(self._plain.directory, link))

    def _clear(self, path: str, *, directory: bool) -> None:
        """Make the parents of `path`, and remove what is there if a rename could not replace it."""
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            is_directory = stat.S_ISDIR(os.lstat(path).st_mode)
        except FileNotFoundError:
            return
        if is_directory and not directory:
            shutil.rmtree(path)
        elif directory and not is_directory:
            os.unlink(path)


async def _go_on(_count: int) -> None:
    """The pause of somebody who is waited for: none."""
