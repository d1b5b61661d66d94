"""What a layer is made of: nodes, the chunks of their files, and the members that hold the chunks.

Values alone; `fetcher.tree` makes them out of a table of contents. None can be part of a reference
cycle, so that the garbage collector need not look at the hundred thousand of a large layer.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Kind(enum.StrEnum):
    """What a node is; WHITEOUT is overlayfs's character device 0:0."""

    DIRECTORY = "dir"
    REGULAR = "reg"
    SYMLINK = "symlink"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"
    WHITEOUT = "whiteout"


DIRECTORY: Final = Kind.DIRECTORY
REGULAR: Final = Kind.REGULAR
SYMLINK: Final = Kind.SYMLINK
WHITEOUT: Final = Kind.WHITEOUT
"""For what is done with each of many nodes: Python 3.11 takes 90 ns to look one up in the class."""


NO_XATTRS: Final[dict[str, bytes]] = {}
NO_LINKS: Final[list[str]] = []
"""Shared by all nodes that have none, which are nearly all: 120 bytes less each. Never to be changed."""


class Chunk(msgspec.Struct, gc=False, eq=False):
    """A piece of a file: `size` bytes at `file_offset` of it.

    It is found `inner_offset` bytes into the output of the compression member that
    fills [offset, end) of the blob. `digest` is its sha256, 32 bytes.
    """

    offset: int
    inner_offset: int
    file_offset: int
    size: int
    digest: bytes
    end: int = 0


class Node(msgspec.Struct, gc=False, eq=False):
    """One inode of a layer.

    `path` has no leading slash and is "" for the root; `links` are further paths of the same inode.
    `mode` has permission, suid, sgid and sticky bits; `mtime` is in seconds. `chunks` are those of a
    regular file, in the file's order and the blob's; an empty file has none. Nodes without xattrs, or
    links, share one empty dict, or list: give a node one of its own, and never add to an empty one.
    """

    path: str
    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0
    target: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = msgspec.field(default_factory=lambda: NO_XATTRS)
    opaque: bool = False
    chunks: tuple[Chunk, ...] = ()
    links: list[str] = msgspec.field(default_factory=lambda: NO_LINKS)


class Member(msgspec.Struct, gc=False, eq=False):
    """One compression member, [offset, end) of the blob, and the file pieces in it by inner offset."""

    offset: int
    end: int
    pieces: tuple[tuple[Node, Chunk], ...]
