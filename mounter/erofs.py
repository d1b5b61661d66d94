"""A layer's tree as an EROFS image: META in one piece, where a tmpfs is made file by file.

Only what META needs of the format (fs/erofs/erofs_fs.h in Linux): blocks of 4 KiB, inodes of 64 bytes, inline
xattrs, no compression. A regular file is one chunk, however large, and that is a hole. Pure; some 230 bytes
and 3 us a file.
"""

from __future__ import annotations

import os
import stat
import struct
from itertools import accumulate, pairwise, repeat
from typing import Final, NamedTuple

from fetcher.nodes import DIRECTORY, REGULAR, SYMLINK, WHITEOUT, Kind, Node
from fetcher.tree import LayerTree
from mounter.errors import UnsupportedAttribute
from mounter.redirects import METACOPY, OPAQUE, REDIRECT, data_directory, own_xattrs

FILE_LIMIT: Final = 1 << 43
"""Bytes of a file that one chunk can have: 8 TiB, half of what ext4 can hold."""

_BLOCK_BITS: Final = 12
_BLOCK: Final = 1 << _BLOCK_BITS
_SLOT_BITS: Final = 5
_SLOT: Final = 1 << _SLOT_BITS
"""An inode begins at a multiple of it, and the quotient is its number."""

_MAGIC: Final = 0xE0F5E1E2
_CHUNKED_FILE: Final = 4
"""The one feature in use that a kernel has to know."""
_SUPERBLOCK: Final = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_SUPERBLOCK_AT: Final = 1024
_FIRST_INODE: Final = _SUPERBLOCK_AT + _SUPERBLOCK.size

_INODE: Final = struct.Struct("<HHHHQIIIIqII16x")
_WHERE: Final = struct.Struct("<I")
_WHERE_AT: Final = 16
"""Where an inode says in which block its data begin."""
_FLAT_PLAIN: Final = 0 << 1 | 1
_FLAT_INLINE: Final = 2 << 1 | 1
_CHUNK_BASED: Final = 4 << 1 | 1
"""Layouts of data, each with the bit for inodes of 64 bytes."""
_CHUNK: Final = 43 - _BLOCK_BITS
_HOLE: Final = b"\xff\xff\xff\xff"

_XATTR: Final = struct.Struct("<BBH")
_XATTR_UNIT: Final = 4
_XATTRS_BEGIN: Final = bytes(12)
_XATTRS_LIMIT: Final = 0xFFFF
"""Bytes of a value, and units of all of an inode."""
_TRUSTED: Final = 4
_NAME_SPACES: Final = (
    ("user.", 1),
    ("system.posix_acl_access", 2),
    ("system.posix_acl_default", 3),
    ("trusted.", _TRUSTED),
    ("security.", 6),
)

_ENTRY: Final = struct.Struct("<QHBB")
_MODES: Final = {
    REGULAR: stat.S_IFREG,
    DIRECTORY: stat.S_IFDIR,
    Kind.CHARACTER: stat.S_IFCHR,
    WHITEOUT: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    SYMLINK: stat.S_IFLNK,
}
_FILE_TYPES: Final = {
    REGULAR: 1,
    DIRECTORY: 2,
    Kind.CHARACTER: 3,
    WHITEOUT: 3,
    Kind.BLOCK: 4,
    Kind.FIFO: 5,
    SYMLINK: 7,
}

_Entries = list[tuple[bytes, Node]]


class _Directory(NamedTuple):
    """A directory whose inode has its place, as has its content where that follows the inode."""

    node: Node
    entries: _Entries
    """Sorted, with `.` and `..`."""
    firsts: list[int]
    """The entry that each block begins with."""
    inode: int
    content: int | None


def build_image(tree: LayerTree, layer: str) -> bytearray:
    """The image. Its root, which lets nobody in but root, holds the tree as `fs`.

    Raises UnsupportedAttribute for an xattr that the format has no place for, or a file beyond FILE_LIMIT.
    """
    return _Image(tree, layer).build()


class _Image:
    """An image being built: first all inodes, then what is in directories, which has the inodes' numbers."""

    def __init__(self, tree: LayerTree, layer: str) -> None:
        self._prefix = data_directory(layer)
        self._contents = _contents(tree)
        self._root = tree.nodes[""]
        self._bytes = bytearray(_FIRST_INODE)
        self._inodes = 0
        self._numbers: dict[int, int] = {}
        """Of what several entries may lead to, by the id() of the node."""
        self._rests: dict[int, tuple[int, bytes]] = {}
        """By the length of a file's redirect: what follows it, and the units of the xattrs."""
        self._directories: list[_Directory] = []
        self._targets: list[tuple[int, bytes]] = []
        """Inodes of symlinks whose targets do not follow them."""

    def build(self) -> bytearray:
        top = Node("", DIRECTORY, 0o700)
        self._place_directory(top, top, [(b"fs", self._root)])
        self._place_directory(self._root, top, self._contents[""])
        numbers = [self._place_all(directory) for directory in self._directories]  # which grows meanwhile
        for directory, those in zip(self._directories, numbers, strict=True):
            self._write_directory(directory, those)
        for inode, target in self._targets:
            self._write_blocks(inode, target)
        self._align(_BLOCK)
        self._write_superblock()
        return self._bytes

    def _place_all(self, directory: _Directory) -> list[int]:
        """Place what is in a directory and has no place yet. The numbers of all that is in it."""
        numbers = []
        known = self._numbers
        path = directory.node.path
        prefix = self._prefix + (_encoded(path) + b"/" if path else b"")
        for name, node in directory.entries:
            if node.kind is REGULAR and not node.links:
                usual = 0 < node.size <= FILE_LIMIT and not node.xattrs
                place = self._place_usual_file if usual else self._place_file
                numbers.append(place(node, prefix + name))
                continue
            if id(node) not in known:
                known[id(node)] = self._place(node, directory.node)
            numbers.append(known[id(node)])
        return numbers

    def _place(self, node: Node, parent: Node) -> int:
        """Give anything its place; the number of its inode."""
        if node.kind is DIRECTORY:
            return self._place_directory(node, parent, self._contents[node.path])
        if node.kind is REGULAR:
            return self._place_file(node, self._prefix + _encoded(node.path))
        if node.kind is SYMLINK:
            target = _encoded(node.target)
            inode, content = self._place_with_content(node, _own(node), len(target), 1 + len(node.links))
            if content is None:
                self._targets.append((inode, target))
            else:
                self._bytes += target
        else:
            device = node.minor & 0xFF | node.major << 8 | (node.minor & ~0xFF) << 12
            inode = self._append_inode(node, _FLAT_PLAIN, _own(node), 0, device, 1 + len(node.links))
        return inode >> _SLOT_BITS

    def _place_file(self, node: Node, data: bytes) -> int:
        """A regular file, whose bytes the data-only layers have as `data`; the number of its inode."""
        size, links = node.size, 1 + len(node.links)
        if not size:
            return self._append_inode(node, _FLAT_PLAIN, _own(node), 0, 0, links) >> _SLOT_BITS
        if size > FILE_LIMIT:
            raise UnsupportedAttribute(
                f"META cannot show the {size} bytes of {node.path!r}: {FILE_LIMIT} at most",
                path=node.path,
                attribute="size",
            )
        xattrs = _METACOPY_XATTR + _xattr(_TRUSTED, _REDIRECT_NAME, data) + _own(node)
        inode = self._append_inode(node, _CHUNK_BASED, xattrs, size, _CHUNK, links)
        self._bytes += _HOLE
        return inode >> _SLOT_BITS

    def _place_usual_file(self, node: Node, data: bytes) -> int:
        """What _place_file makes of a file with bytes, one name and no xattrs; in a third of the time."""
        over = len(self._bytes) % _SLOT
        if over:
            self._bytes += bytes(_SLOT - over)
        number = len(self._bytes) >> _SLOT_BITS
        self._inodes += 1
        length = len(data)
        units, rest = self._rests.get(length) or self._rest(length)
        self._bytes += (
            _USUAL_FILE.pack(
                _CHUNK_BASED,
                units,
                stat.S_IFREG | node.mode,
                0,
                node.size,
                _CHUNK,
                self._inodes,
                node.uid,
                node.gid,
                node.mtime,
                0,
                1,
                _USUAL_XATTRS,
                length,
                _REDIRECT_NAME,
            )
            + data
            + rest
        )
        return number

    def _rest(self, length: int) -> tuple[int, bytes]:
        """The units of the xattrs of a usual file with `length` bytes of redirect, and what follows that."""
        size = _USUAL_FILE.size - _INODE.size + length
        padding = -size % _XATTR_UNIT
        units = (size + padding - len(_XATTRS_BEGIN)) // _XATTR_UNIT + 1
        rest = bytes(padding) + _HOLE
        rest += bytes(-(_USUAL_FILE.size + length + len(rest)) % _SLOT)
        self._rests[length] = units, rest
        return units, rest

    def _place_directory(self, node: Node, parent: Node, contents: _Entries) -> int:
        entries = sorted([*contents, (b".", node), (b"..", parent)])
        firsts, used = _blocks([name for name, _ in entries])
        links = sum([entry.kind is DIRECTORY for _, entry in entries])
        xattrs = _OPAQUE_XATTR + _own(node) if node.opaque else _own(node)
        size = (len(firsts) - 1) * _BLOCK + used
        inode, content = self._place_with_content(node, xattrs, size, links)
        if content is not None:
            self._bytes += bytes(size)
        self._directories.append(_Directory(node, entries, firsts, inode, content))
        number = inode >> _SLOT_BITS
        self._numbers[id(node)] = number
        return number

    def _place_with_content(self, node: Node, xattrs: bytes, size: int, links: int) -> tuple[int, int | None]:
        """An inode whose content is appended next; or, if its offset is None, later, to blocks of its own."""
        head = _INODE.size + (len(_XATTRS_BEGIN) + len(xattrs) if xattrs else 0)
        if head + size > _BLOCK:
            return self._append_inode(node, _FLAT_PLAIN, xattrs, size, 0, links), None
        self._align(_SLOT)
        if len(self._bytes) % _BLOCK + head + size > _BLOCK:
            self._align(_BLOCK)  # content that follows its inode ends in the same block
        inode = self._append_inode(node, _FLAT_INLINE, xattrs, size, 0, links)
        return inode, inode + head

    def _append_inode(self, node: Node, layout: int, xattrs: bytes, size: int, where: int, links: int) -> int:
        """Append an inode with its xattrs; the offset of it."""
        units = 1 + len(xattrs) // _XATTR_UNIT if xattrs else 0
        if units > _XATTRS_LIMIT:
            raise UnsupportedAttribute(
                f"META cannot show the xattrs of {node.path!r}, which have {len(xattrs)} bytes",
                path=node.path,
                attribute=next(iter(node.xattrs)),
            )
        self._align(_SLOT)
        inode = len(self._bytes)
        self._inodes += 1
        self._bytes += _INODE.pack(
            layout,
            units,
            _MODES[node.kind] | node.mode,
            0,
            size,
            where,
            self._inodes,
            node.uid,
            node.gid,
            node.mtime,
            0,
            links,
        )
        if xattrs:
            self._bytes += _XATTRS_BEGIN + xattrs
        return inode

    def _write_directory(self, directory: _Directory, numbers: list[int]) -> None:
        content = _directory_content(directory, numbers)
        if directory.content is None:
            self._write_blocks(directory.inode, content)
        else:
            self._bytes[directory.content : directory.content + len(content)] = content

    def _write_blocks(self, inode: int, content: bytes) -> None:
        self._align(_BLOCK)
        _WHERE.pack_into(self._bytes, inode + _WHERE_AT, len(self._bytes) >> _BLOCK_BITS)
        self._bytes += content

    def _write_superblock(self) -> None:
        _SUPERBLOCK.pack_into(
            self._bytes,
            _SUPERBLOCK_AT,
            _MAGIC,
            0,
            0,
            _BLOCK_BITS,
            0,
            _FIRST_INODE >> _SLOT_BITS,
            self._inodes,
            0,
            0,
            len(self._bytes) >> _BLOCK_BITS,
            0,
            0,
            os.urandom(16),
            b"layergate-meta",
            _CHUNKED_FILE,
        )

    def _align(self, unit: int) -> None:
        over = len(self._bytes) % unit
        if over:
            self._bytes += bytes(unit - over)


def _contents(tree: LayerTree) -> dict[str, _Entries]:
    """What each directory has in it."""
    contents: dict[str, _Entries] = {}
    for path, node in tree.nodes.items():
        if path:
            parent, _, name = path.rpartition("/")
            contents[parent].append((_encoded(name), node))
            if path != node.path:
                continue
        if node.kind is DIRECTORY:
            contents[path] = []
    return contents


def _blocks(names: list[bytes]) -> tuple[list[int], int]:
    """The entry that each block of a directory begins with, and how much of the last one is used. Pure."""
    needed = [_ENTRY.size + len(name) for name in names]
    firsts, used = [0], sum(needed)
    if used > _BLOCK:
        used = 0
        for index, size in enumerate(needed):
            if used + size > _BLOCK:
                firsts.append(index)
                used = 0
            used += size
    return firsts, used


def _directory_content(directory: _Directory, numbers: list[int]) -> bytes:
    """Blocks of entries, each with its names behind them; the last block ends with its last name."""
    blocks = []
    for first, end in pairwise([*directory.firsts, len(directory.entries)]):
        names = [name for name, _ in directory.entries[first:end]]
        types = [_FILE_TYPES[node.kind] for _, node in directory.entries[first:end]]
        positions = accumulate(map(len, names), initial=_ENTRY.size * len(names))
        heads = map(_ENTRY.pack, numbers[first:end], positions, types, repeat(0))
        blocks.append(b"".join((*heads, *names)))
    return b"".join([block.ljust(_BLOCK, b"\0") for block in blocks[:-1]] + blocks[-1:])


def _own(node: Node) -> bytes:
    """The layer's own xattrs of a node."""
    return b"".join(_own_xattr(node, name, value) for name, value in own_xattrs(node)) if node.xattrs else b""


def _own_xattr(node: Node, name: str, value: bytes) -> bytes:
    for prefix, index in _NAME_SPACES:
        rest = name.removeprefix(prefix)
        if rest != name and bool(rest) == prefix.endswith(".") and len(value) <= _XATTRS_LIMIT:
            return _xattr(index, _encoded(rest), value)
    raise UnsupportedAttribute(
        f"META cannot show the xattr {name!r} of {node.path!r} ({len(value)} bytes)",
        path=node.path,
        attribute=name,
    )


def _xattr(index: int, name: bytes, value: bytes) -> bytes:
    size = _XATTR.size + len(name) + len(value)
    return _XATTR.pack(len(name), index, len(value)) + name + value + bytes(-size % _XATTR_UNIT)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_METACOPY_XATTR: Final = _xattr(_TRUSTED, _encoded(METACOPY.removeprefix("trusted.")), b"")
_OPAQUE_XATTR: Final = _xattr(_TRUSTED, _encoded(OPAQUE.removeprefix("trusted.")), b"y")
_REDIRECT_NAME: Final = _encoded(REDIRECT.removeprefix("trusted."))

_USUAL_XATTRS: Final = _XATTRS_BEGIN + _METACOPY_XATTR + bytes([len(_REDIRECT_NAME), _TRUSTED])
_USUAL_FILE: Final = struct.Struct(f"{_INODE.format}{len(_USUAL_XATTRS)}sH{len(_REDIRECT_NAME)}s")
