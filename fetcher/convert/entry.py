"""A tar entry as the layer writer knows it: what a TOC says of it, and where its bytes are. Values alone."""

from __future__ import annotations

import posixpath
from typing import Final

import msgspec

from fetcher.convert.extents import Extent, length

DIRECTORY: Final = "dir"
REGULAR: Final = "reg"
HARD_LINK: Final = "hardlink"
SYMLINK: Final = "symlink"
GLOBAL: Final = "global"
"""No entry but a global PAX header. See `fetcher.convert.order` for where it goes."""


class Entry(msgspec.Struct, gc=False, eq=False, kw_only=True):
    """`kind` is the TOC's word for the type, `name` the path as it is archived, `path` the clean one.

    The three last make up the entry in the output: `header` is all its header blocks, extended ones in front,
    as they were read; `content` a regular file's bytes; `padding` what fills up the last block. `start` is
    where the headers were in the source, whatever they are now. Names are decoded with surrogateescape.
    """

    kind: str
    name: str
    path: str
    start: int
    link: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    mtime: int = 0
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] | None = None
    size: int = 0
    header: Extent = b""
    content: tuple[Extent, ...] = ()
    padding: Extent = b""

    @property
    def archived_size(self) -> int:
        """Bytes that the entry takes in a tar."""
        return length(self.header) + self.size + length(self.padding)


def clean(name: str) -> str:
    """The path of an archived name or a hard link's target inside the layer; "" is the root."""
    return posixpath.normpath("/" + name).lstrip("/")


def text(name: bytes) -> str:
    """A name as paths are decoded everywhere here."""
    return name.decode("utf-8", "surrogateescape")


def raw(name: str) -> bytes:
    """The bytes of a decoded name."""
    return name.encode("utf-8", "surrogateescape")
