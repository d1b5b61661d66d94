"""The gate, and beside it each layer as a whole tree, in one FUSE session.

    /<layer>/fs/<path>          GATE: what overlayfs asks for missing files
    /trees/<layer>/fs/<path>    the layer as it is, whiteouts and all: what a manual mount of one layer shows

Inode numbers tell the two apart: a tree's have its layer's turn in the upper 32 bits, the gate counts its own
below that. Nobody looks at the gate itself, but a tree is bound where every user may come by; so the kernel
checks permissions (default_permissions).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyfuse3

from mounter.gate import Gate, directory_attributes
from mounter.stub import Stub

TREES: Final = "trees"
"""The directory that has them."""

_TREES_INODE: Final = 0xFFFFFFFF
_TREE_INODES: Final = 1 << 32


class GateWithTrees(pyfuse3.Operations):
    """Passes each request on to the one that it is for; belongs to the event loop."""

    supports_dot_lookup = False

    def __init__(self, gate: Gate, trees: Stub) -> None:
        super().__init__()
        self._gate = gate
        self._trees = trees
        self.trees_seen = False
        """Whether the kernel may know inodes of a tree."""

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """See Gate and Stub."""
        if parent_inode == pyfuse3.ROOT_INODE and name == TREES.encode():
            return directory_attributes(_TREES_INODE)
        if parent_inode == _TREES_INODE:
            self.trees_seen = True
            return await self._trees.lookup(pyfuse3.ROOT_INODE, name, ctx)
        return await self._of(parent_inode).lookup(parent_inode, name, ctx)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """See Gate and Stub."""
        if inode == _TREES_INODE:
            return directory_attributes(inode)
        return await self._of(inode).getattr(inode, ctx)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """See Gate; trees keep nothing."""
        await self._gate.forget([(inode, count) for inode, count in inode_list if inode < _TREES_INODE])

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """See Stub."""
        return await self._trees.readlink(inode, ctx)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """See Stub; what is the gate's has none."""
        return await self._trees.listxattr(inode, ctx) if inode >= _TREE_INODES else ()

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """See Stub; what is the gate's has none."""
        if inode < _TREE_INODES:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return await self._trees.getxattr(inode, name, ctx)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The handle of a directory is its inode, in either."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """See Stub; the gate lists nothing, and neither are the trees listed."""
        if fh >= _TREE_INODES:
            await self._trees.readdir(fh, start_id, token)

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """See Gate and Stub; both have the same open files."""
        return await self._of(inode).open(inode, flags, ctx)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """See Gate."""
        return await self._gate.read(fh, off, size)

    async def release(self, fh: int) -> None:
        """See Gate."""
        await self._gate.release(fh)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """See Gate."""
        return await self._gate.statfs(ctx)

    @property
    def is_dispensable(self) -> bool:
        """Whether the kernel knows no file of ours: nobody misses us then where every layer is complete."""
        return not self.trees_seen and not self._gate.serves_files

    def _of(self, inode: int) -> Gate | Stub:
        return self._trees if inode >= _TREE_INODES else self._gate
