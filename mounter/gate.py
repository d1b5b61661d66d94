"""GATE: the FUSE file system that the first open of a missing file passes through once.

    /<layer>/fs/<path>      the same paths as PLAIN and LATE have

overlayfs asks here for what PLAIN does not have. LOOKUP of

    a directory             is answered from the layer's tree, without waiting
    a regular file          waits until it is in PLAIN and linked into LATE, then says ENOENT:
                            overlayfs goes on to LATE and has a native file
    one too large to wait for, or whose fetch failed or took too long
                            is answered with a FUSE inode, whose open and read try (again) and end in EIO
    a name not in the tree  ENOENT

Without FUSE_PARALLEL_DIROPS the kernel sends one LOOKUP at a time per directory inode. So path walks that
overlap get directories of their own: the top directory of a layer is looked up anew by each walk, and is
the usual inode if no other walk is under way in there (the kernel knows the directories below it already,
and asks for the file alone), else one with a fresh number, and everything below it has new numbers too.
No file waits for its neighbour. The kernel forgets them by itself. Walks that begin at the same time enter
one after another (`mounter.turns`).

A file inode stays the answer for its name in its directory as long as the kernel knows it. A walk that
starts anew never sees it; only overlayfs does, which keeps the dentry and revalidates it, and would
report ESTALE if another answer came.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pyfuse3
from anyio import to_thread

from fetcher.errors import FetchError
from fetcher.logs import get_logger
from fetcher.nodes import Kind, Node
from fetcher.store import KEY_LENGTH
from mounter.answers import answered
from mounter.errors import TooSlow
from mounter.files import OpenFiles
from mounter.handover import Late
from mounter.loaded import LoadedLayer
from mounter.ondemand import OnDemand
from mounter.turns import Turns

log = get_logger("layergate.mounter")

FOREVER: Final = 86400.0
"""Seconds that the kernel may keep an answer: a layer never changes."""


@dataclass(slots=True)
class _Inode:
    """An inode that the kernel knows. `path` is None for a layer's top directory, "" for its fs/.

    `top` is the number of the top directory that it was reached by. `name` is the key under which a file
    inode is kept in its directory, `parent`.
    """

    layer: str
    path: str | None
    top: int
    parent: int
    name: bytes
    node: Node | None
    lookups: int = 1


@dataclass(slots=True)
class _Usual:
    """The top directory of a layer that one walk at a time goes through."""

    inode: int
    taken: bool = True
    """Whether a walk is under way that has had no answer for its file. One that never asks for a file leaves
    it taken; the next walk then gets another top, and the kernel forgets this one."""


class Gate(pyfuse3.Operations):
    """The gate's requests; belongs to the event loop."""

    supports_dot_lookup = False

    def __init__(self, ondemand: OnDemand, files: OpenFiles, late: Late) -> None:
        super().__init__()
        self._ondemand = ondemand
        self._counters = ondemand.counters
        self._files = files
        self._late = late
        self._numbers = itertools.count(pyfuse3.ROOT_INODE + 1)
        self._inodes: dict[int, _Inode] = {}
        self._usual: dict[str, _Usual] = {}
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._served: dict[tuple[int, bytes], int] = {}
        """File inodes by directory and name."""

    @answered
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Answer one component of a path; the module's text says how."""
        if parent_inode == pyfuse3.ROOT_INODE:
            return await self._lookup_layer(os.fsdecode(name), ctx.pid)
        parent = self._inodes[parent_inode]
        self._turns[parent.layer].entered(parent.top)
        if parent.path is None:
            if name != b"fs":
                raise self._absent()
            return self._directory(parent.layer, "", parent.top)
        text = os.fsdecode(name)
        path = f"{parent.path}/{text}" if parent.path else text
        loaded = await self._ondemand.layers.get(parent.layer)
        node = loaded.tree.nodes.get(path)
        if node is None or node.kind not in (Kind.DIRECTORY, Kind.REGULAR):
            raise self._absent()
        if node.kind is Kind.DIRECTORY:
            return self._directory(parent.layer, path, parent.top)
        usual = self._usual.get(parent.layer)
        try:
            return await self._lookup_file(parent_inode, name, path, loaded, node)
        finally:
            if usual is not None and usual.inode == parent.top:
                usual.taken = False

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """The attributes of a file's node; directories of the gate have made-up ones."""
        if inode == pyfuse3.ROOT_INODE:
            return root_attributes()
        known = self._inodes[inode]
        return directory_attributes(inode) if known.node is None else node_attributes(inode, known.node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Drop what the kernel no longer knows."""
        for inode, count in inode_list:
            known = self._inodes.get(inode)
            if known is None:
                continue
            known.lookups -= count
            if known.lookups <= 0:
                del self._inodes[inode]
                if known.node is not None:
                    self._served.pop((known.parent, known.name), None)
                elif (usual := self._usual.get(known.layer)) is not None and usual.inode == inode:
                    del self._usual[known.layer]

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file inode: waits for a small file once more, never for a large one."""
        known = self._inodes[inode]
        assert known.node is not None, "directories are not opened by OPEN"
        handle = await self._files.open(known.layer, known.node.path)
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
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Any directory may be opened; it lists nothing."""
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List nothing: overlayfs never asks, and nobody else should walk about in here."""

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """No blocks, so that df leaves the mount out."""
        return no_blocks()

    @property
    def serves_files(self) -> bool:
        """Whether the kernel knows an inode of a file that is read through us."""
        return bool(self._served)

    def _absent(self) -> pyfuse3.FUSEError:
        self._counters.lookups_absent += 1
        return pyfuse3.FUSEError(errno.ENOENT)

    async def _lookup_layer(self, key: str, thread: int) -> pyfuse3.EntryAttributes:
        if len(key) != KEY_LENGTH or not self._ondemand.layers.store.exists(key):
            raise self._absent()
        turns = self._turns[key]
        await turns.take(thread)
        usual = self._usual.get(key)
        if usual is not None and not usual.taken:
            usual.taken = True
            self._counters.lookups_directory += 1
            self._inodes[usual.inode].lookups += 1
            attributes = directory_attributes(usual.inode)
        else:
            attributes = self._directory(key, None)
            if usual is None:
                self._usual[key] = _Usual(attributes.st_ino)
        attributes.entry_timeout = 0
        turns.give(attributes.st_ino)
        return attributes

    def _directory(self, layer: str, path: str | None, top: int = 0) -> pyfuse3.EntryAttributes:
        self._counters.lookups_directory += 1
        inode = next(self._numbers)
        self._inodes[inode] = _Inode(layer, path, top or inode, 0, b"", None)
        return directory_attributes(inode)

    async def _lookup_file(
        self, parent: int, name: bytes, path: str, loaded: LoadedLayer, node: Node
    ) -> pyfuse3.EntryAttributes:
        self._counters.lookups_file += 1
        served = self._served.get((parent, name))
        if served is not None:
            self._inodes[served].lookups += 1
            return node_attributes(served, node)
        if await self._came(loaded, node) and await self._handed_over(loaded, node, path):
            self._counters.handed_over += 1
            raise pyfuse3.FUSEError(errno.ENOENT)
        self._counters.served += 1
        inode = next(self._numbers)
        self._inodes[inode] = _Inode(loaded.key, path, self._inodes[parent].top, parent, name, node)
        self._served[parent, name] = inode
        return node_attributes(inode, node)

    async def _came(self, loaded: LoadedLayer, node: Node) -> bool:
        """Whether the file is in PLAIN, after waiting for it if that is worth while."""
        if loaded.plain.has(node):
            return True
        if self._ondemand.is_large(loaded, node):
            if await self._ondemand.streams.prefetched_large(loaded, node):
                self._counters.streamed += 1
                return True
            log.info("serving_large_file", layer=loaded.key, path=node.path, size=node.size)
            return False
        try:
            await self._ondemand.fetch(loaded, node)
        except (FetchError, TooSlow) as error:
            log.warning("serving_instead", layer=loaded.key, path=node.path, error=str(error))
            return False
        return True

    async def _handed_over(self, loaded: LoadedLayer, node: Node, path: str) -> bool:
        try:
            with self._ondemand.answering():
                return await to_thread.run_sync(
                    self._late.hand_over, loaded.key, path, loaded.plain.path(node)
                )
        except OSError as error:
            log.warning("not_handed_over", layer=loaded.key, path=path, error=str(error))
            return False


def directory_attributes(inode: int) -> pyfuse3.EntryAttributes:
    """A directory of the gate's own."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = inode
    attributes.st_mode = stat.S_IFDIR | 0o755
    attributes.st_nlink = 2
    attributes.entry_timeout = attributes.attr_timeout = FOREVER
    return attributes


def root_attributes() -> pyfuse3.EntryAttributes:
    """The mount's root; not kept by the kernel, so that a stat of it tells whether anybody is there.

    Only root may enter. Those who have an overlay on the gate do not come this way: overlayfs does, as root.
    """
    attributes = directory_attributes(pyfuse3.ROOT_INODE)
    attributes.st_mode = stat.S_IFDIR | 0o700
    attributes.attr_timeout = 0
    return attributes


_TYPES: Final = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.REGULAR: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.WHITEOUT: stat.S_IFCHR,
}


def node_attributes(inode: int, node: Node) -> pyfuse3.EntryAttributes:
    """A node's attributes, under the number `inode`."""
    attributes = pyfuse3.EntryAttributes()
    attributes.st_ino = inode
    attributes.st_mode = _TYPES[node.kind] | (0o777 if node.kind is Kind.SYMLINK else node.mode)
    attributes.st_nlink = 2 if node.kind is Kind.DIRECTORY else 1 + len(node.links)
    attributes.st_uid = node.uid
    attributes.st_gid = node.gid
    attributes.st_rdev = os.makedev(node.major, node.minor)
    attributes.st_size = len(os.fsencode(node.target)) if node.kind is Kind.SYMLINK else node.size
    attributes.st_blocks = (node.size + 511) // 512
    attributes.st_atime_ns = attributes.st_ctime_ns = attributes.st_mtime_ns = node.mtime * 1_000_000_000
    attributes.entry_timeout = attributes.attr_timeout = FOREVER
    return attributes


def no_blocks() -> pyfuse3.StatvfsData:
    """The statistics of a file system that takes no space."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = 4096
    data.f_blocks = data.f_bfree = data.f_bavail = 0
    data.f_files = data.f_ffree = data.f_favail = 0
    data.f_namemax = 255
    return data
