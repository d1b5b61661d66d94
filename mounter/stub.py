"""The fallback: each layer as a complete read-only tree at /<layer>/fs, for kernels without data-only layers.

The tree is the lower directory of an ordinary overlay, so every request of a container ends here until
the layer is complete and its next mount is native. An open waits until the file is in PLAIN and reads it
from there; a large one comes chunk by chunk, as with the gate.

Inode numbers follow from the tree alone: the layer's turn in the upper bits, the node's place in the
lower 32. So nothing is kept per inode, however many the kernel knows, and a tree can be given up and
loaded again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pyfuse3

from fetcher.nodes import Kind, Node
from fetcher.store import KEY_LENGTH
from mounter.answers import answered
from mounter.files import OpenFiles
from mounter.gate import directory_attributes, no_blocks, node_attributes, root_attributes
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.redirects import OPAQUE

_TOP = 0
"""What stands for a layer's top directory, which holds fs/ alone; nodes are counted from 1."""


class Stub(pyfuse3.Operations):
    """The fallback's requests; belongs to the event loop."""

    supports_dot_lookup = False

    def __init__(self, ondemand: OnDemand, files: OpenFiles) -> None:
        super().__init__()
        self._ondemand = ondemand
        self._counters = ondemand.counters
        self._files = files
        self._turns: list[str] = []
        """The layers in the order in which they were first asked for."""

    @answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Answer one component of a path from the tree."""
        text = os.fsdecode(name)
        if parent_inode == pyfuse3.ROOT_INODE:
            if len(text) != KEY_LENGTH or not self._ondemand.layers.store.exists(text):
                raise self._absent()
            self._counters.lookups_directory += 1
            return directory_attributes(self._base(text) | _TOP)
        layer = await self._layer(parent_inode)
        if _place(parent_inode) == _TOP:
            if text != "fs":
                raise self._absent()
            node = layer.tree.nodes[""]
        else:
            parent = _node(layer, parent_inode).path
            found = layer.tree.nodes.get(f"{parent}/{text}" if parent else text)
            if found is None:
                raise self._absent()
            node = found
        if node.kind is Kind.DIRECTORY:
            self._counters.lookups_directory += 1
        else:
            self._counters.lookups_file += 1
        return self._attributes(layer, node)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """The attributes of a node."""
        if inode == pyfuse3.ROOT_INODE:
            return root_attributes()
        if _place(inode) == _TOP:
            return directory_attributes(inode)
        layer = await self._layer(inode)
        return self._attributes(layer, _node(layer, inode))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per inode."""

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """A symlink's text."""
        return os.fsencode((await self._node(inode)).target)

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        """The names of a node's xattrs, overlayfs's mark of an opaque directory among them."""
        return list(await self._xattrs(inode))

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """The value of an xattr; ENODATA without it."""
        value = (await self._xattrs(inode)).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The handle of a directory is its inode."""
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """The names in a directory of a layer; the layers themselves are not listed."""
        if fh == pyfuse3.ROOT_INODE:
            return
        layer = await self._layer(fh)
        tree = layer.tree
        if _place(fh) == _TOP:
            listed = [("fs", tree.nodes[""])]
        else:
            path = _node(layer, fh).path
            prefix = f"{path}/" if path else ""
            listed = [(name, tree.nodes[prefix + name]) for name in tree.children(path)]
        for position in range(start_id, len(listed)):
            name, node = listed[position]
            if not pyfuse3.readdir_reply(
                token, os.fsencode(name), self._attributes(layer, node), position + 1
            ):
                return

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file: waits until it is here, unless it is a large one."""
        layer = await self._layer(inode)
        handle = await self._files.open(layer.key, _node(layer, inode).path)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Bytes of an open file, verified."""
        return await self._files.read(fh, off, size)

    @answered
    async def release(self, fh: int) -> None:
        """Close an open file."""
        await self._files.release(fh)

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """No blocks, so that df leaves the mount out."""
        return no_blocks()

    def _absent(self) -> pyfuse3.FUSEError:
        self._counters.lookups_absent += 1
        return pyfuse3.FUSEError(errno.ENOENT)

    def _base(self, key: str) -> int:
        if key not in self._turns:
            self._turns.append(key)
        return (self._turns.index(key) + 1) << 32

    async def _layer(self, inode: int) -> LoadedLayer:
        return await self._ondemand.layers.get(self._turns[(inode >> 32) - 1])

    async def _node(self, inode: int) -> Node:
        return _node(await self._layer(inode), inode)

    def _attributes(self, layer: LoadedLayer, node: Node) -> pyfuse3.EntryAttributes:
        return node_attributes(self._base(layer.key) | layer.place(node) + 1, node)

    async def _xattrs(self, inode: int) -> dict[bytes, bytes]:
        if inode == pyfuse3.ROOT_INODE or _place(inode) == _TOP:
            return {}
        node = await self._node(inode)
        values = {os.fsencode(name): value for name, value in node.xattrs.items()}
        if node.opaque:
            values[OPAQUE.encode()] = b"y"
        return values


def _place(inode: int) -> int:
    return inode & 0xFFFFFFFF


def _node(layer: LoadedLayer, inode: int) -> Node:
    return layer.inodes()[_place(inode) - 1]
