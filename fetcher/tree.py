"""The file tree that a table of contents describes. Pure; no I/O.

`build_tree` is the one place that decides what a layer looks like: every name
is normalised and cannot leave the layer, every path has one node, only
directories have children, and the chunks of a file cover it exactly. Whoever
writes or mounts a tree may rely on that.
"""

from __future__ import annotations

import enum
import posixpath
from bisect import bisect_right
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from fetcher.errors import InvalidToc
from fetcher.toc import TOC_NAME, Toc, TocEntry

LANDMARK: Final = ".prefetch.landmark"
NO_LANDMARK: Final = ".no.prefetch.landmark"
NAME_LIMIT: Final = 255
PATH_LIMIT: Final = 3500
"""Bytes in a path: PATH_MAX (4096) less room for the directory that the layer lies in."""

_HIDDEN = frozenset({LANDMARK, NO_LANDMARK, TOC_NAME})
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
_STEERING = ("trusted.overlay.", "user.overlay.")
_MAX_SIZE = 1 << 62


class Kind(enum.Enum):
    """What a node is; WHITEOUT is overlayfs's character device 0:0."""

    DIRECTORY = "dir"
    REGULAR = "reg"
    SYMLINK = "symlink"
    CHARACTER = "char"
    BLOCK = "block"
    FIFO = "fifo"
    WHITEOUT = "whiteout"


_KINDS = {
    "dir": Kind.DIRECTORY,
    "reg": Kind.REGULAR,
    "symlink": Kind.SYMLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}


class Chunk:
    """A piece of a file: `size` bytes at `file_offset` of it.

    It is found `inner_offset` bytes into the output of the compression member that
    fills [offset, end) of the blob. `digest` is its sha256, 32 bytes.
    """

    __slots__ = ("digest", "end", "file_offset", "inner_offset", "offset", "size")

    def __init__(self, offset: int, inner_offset: int, file_offset: int, size: int, digest: bytes) -> None:
        self.offset = offset
        self.end = 0
        self.inner_offset = inner_offset
        self.file_offset = file_offset
        self.size = size
        self.digest = digest


class Node:
    """One inode of a layer.

    `path` has no leading slash and is "" for the root; `links` are further paths of the same inode.
    `mode` has permission, suid, sgid and sticky bits; `mtime` is in seconds.
    """

    __slots__ = (
        "chunks",
        "gid",
        "kind",
        "links",
        "major",
        "minor",
        "mode",
        "mtime",
        "opaque",
        "path",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, path: str, kind: Kind, mode: int = 0o755) -> None:
        self.path = path
        self.kind = kind
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.size = 0
        self.target = ""
        self.major = 0
        self.minor = 0
        self.xattrs: dict[str, bytes] = {}
        self.opaque = False
        self.chunks: tuple[Chunk, ...] = ()
        self.links: list[str] = []


class Member:
    """One compression member, [offset, end) of the blob, and the file pieces in it by inner offset."""

    __slots__ = ("end", "offset", "pieces")

    def __init__(self, offset: int, end: int, pieces: list[tuple[Node, Chunk]]) -> None:
        self.offset = offset
        self.end = end
        self.pieces = pieces


class LayerTree:
    """A layer's nodes by path, parents before children; a hard link's path maps to its primary's node.

    `landmark` is where the prefetch range [0, landmark) ends, None where there is none;
    `end` is where the last member ends, which is where the TOC starts.
    """

    __slots__ = ("_children", "end", "landmark", "members", "nodes")

    def __init__(
        self, nodes: dict[str, Node], members: list[Member], *, landmark: int | None, end: int
    ) -> None:
        self.nodes = nodes
        self.members = members
        self.landmark = landmark
        self.end = end
        self._children: dict[str, list[str]] | None = None

    def inodes(self) -> Iterable[Node]:
        """Each node once, parents before children."""
        return (node for path, node in self.nodes.items() if node.path == path)

    def regular_files(self) -> Iterable[Node]:
        """Each regular file that has bytes, once."""
        return (node for node in self.inodes() if node.chunks)

    def children(self, path: str) -> list[str]:
        """The names in the directory `path`; [] where it has none."""
        if self._children is None:
            self._children = {}
            for child in self.nodes:
                if child:
                    parent, _, name = child.rpartition("/")
                    self._children.setdefault(parent, []).append(name)
        return self._children.get(path, [])


def build_tree(toc: Toc, *, end: int) -> LayerTree:
    """The tree of a decoded TOC whose members end at byte `end` of the blob.

    Raises InvalidToc, naming the entry, for anything that would lead out of the
    layer or contradicts itself.
    """
    entries, chunks = _last_wins(toc)
    by_digest = _verified_by_digest(toc)
    landmark: int | None = None
    nodes: dict[str, Node] = {}
    hardlinks: dict[str, str] = {}
    whiteouts: list[str] = []
    opaques: list[str] = []
    for path, entry in entries.items():
        if path in _HIDDEN:
            if path == LANDMARK and NO_LANDMARK not in entries:
                landmark = entry.offset
            continue
        name = path.rpartition("/")[2]
        if name.startswith(_WHITEOUT):
            if name == _OPAQUE:
                opaques.append(path.rpartition("/")[0])
            elif not name.startswith(_AUFS):
                whiteouts.append(path)
            continue
        if entry.type == "hardlink":
            hardlinks[path] = _clean(entry.link_name)
            continue
        nodes[path] = _node(path, entry, chunks.get(path, ()), end, by_digest=by_digest)
    for path in hardlinks:
        node = nodes.get(_resolve(path, hardlinks))
        if node is None:
            raise InvalidToc(f"{path!r} is a hard link to {hardlinks[path]!r}, which is not in the layer")
        if node.kind is Kind.DIRECTORY:
            raise InvalidToc(f"{path!r} is a hard link to the directory {node.path!r}")
        nodes[path] = node
        node.links.append(path)
    for path in whiteouts:
        parent, _, name = path.rpartition("/")
        hidden = name[len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise InvalidToc(f"{path!r} is a whiteout of no name")
        covered = f"{parent}/{hidden}" if parent else hidden
        if covered not in nodes:
            nodes[covered] = Node(covered, Kind.WHITEOUT, 0)
    for path in opaques:
        nodes.setdefault(path, Node(path, Kind.DIRECTORY)).opaque = True
    ordered = _with_parents(nodes)
    members = _members(ordered, landmark, end)
    if landmark is not None and not 0 <= landmark <= end:
        raise InvalidToc(f"the prefetch landmark is at byte {landmark}, outside the layer")
    return LayerTree(ordered, members, landmark=landmark, end=end)


def _last_wins(toc: Toc) -> tuple[dict[str, TocEntry], dict[str, list[TocEntry]]]:
    """Entries by clean path, the last of a name winning, and the chunk entries that follow each."""
    entries: dict[str, TocEntry] = {}
    chunks: dict[str, list[TocEntry]] = {}
    for entry in toc.entries:
        path = _clean(entry.name)
        if entry.type == "chunk":
            owner = entries.get(path)
            if owner is None or owner.type != "reg":
                raise InvalidToc(f"a chunk of {entry.name!r} comes before the file itself")
            chunks.setdefault(path, []).append(entry)
        else:
            entries.pop(path, None)
            chunks.pop(path, None)
            entries[path] = entry
    return entries, chunks


def _clean(name: str) -> str:
    """clean("/" + name) of the specification, without its leading slash."""
    if "\0" in name:
        raise InvalidToc(f"the name {name!r} contains a zero byte")
    path = posixpath.normpath("/" + name).lstrip("/")
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidToc(f"the name {name!r} cannot be encoded: {error.reason}") from None
    if len(raw) > NAME_LIMIT:
        if len(raw) > PATH_LIMIT:
            raise InvalidToc(f"the name {name[:60]!r}... has {len(raw)} bytes, more than {PATH_LIMIT}")
        if any(len(part) > NAME_LIMIT for part in raw.split(b"/")):
            raise InvalidToc(f"a part of the name {name[:60]!r}... has more than {NAME_LIMIT} bytes")
    return path


def _verified_by_digest(toc: Toc) -> bool:
    """Whether files are verified by `digest`: no chunk entry, no chunkDigest, a digest on every file."""
    for entry in toc.entries:
        if entry.type == "chunk" or entry.chunk_digest:
            return False
        if entry.type == "reg" and entry.size and not entry.digest:
            return False
    return True


def _node(path: str, entry: TocEntry, more: Iterable[TocEntry], end: int, *, by_digest: bool) -> Node:
    kind = _KINDS.get(entry.type)
    if kind is None:
        raise InvalidToc(f"{path!r} has the unknown type {entry.type!r}")
    if kind is Kind.CHARACTER and not entry.dev_major and not entry.dev_minor:
        kind = Kind.WHITEOUT
    if path == "" and kind is not Kind.DIRECTORY:
        raise InvalidToc(f"the layer's root is a {kind.value}, not a directory")
    node = Node(path, kind, entry.mode & 0o7777)
    node.uid = _within(entry.uid, 0, 0xFFFFFFFE, path, "uid")
    node.gid = _within(entry.gid, 0, 0xFFFFFFFE, path, "gid")
    node.mtime = _seconds(entry.modtime, path)
    if entry.xattrs:
        for name in entry.xattrs:
            if name.startswith(_STEERING):
                raise InvalidToc(f"{path!r} carries the xattr {name!r}, which would steer overlayfs")
            if not name or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > NAME_LIMIT:
                raise InvalidToc(f"{path!r} carries an xattr with the invalid name {name!r}")
        if kind not in (Kind.REGULAR, Kind.DIRECTORY):
            # The kernel keeps user.* on files and directories only; every unpacker drops the others.
            node.xattrs = {name: value for name, value in entry.xattrs.items() if name[:5] != "user."}
        else:
            node.xattrs = entry.xattrs
    if kind is Kind.REGULAR:
        node.size = _within(entry.size, 0, _MAX_SIZE, path, "size")
        if node.size:
            node.chunks = _chunks(path, entry, more, end, by_digest=by_digest)
    elif kind is Kind.SYMLINK:
        if not entry.link_name or "\0" in entry.link_name or len(os_bytes(entry.link_name)) > 4095:
            raise InvalidToc(f"the symlink {path!r} has an invalid target")
        node.target = entry.link_name
    elif kind in (Kind.CHARACTER, Kind.BLOCK):
        node.major = _within(entry.dev_major, 0, 0xFFF, path, "device major number")
        node.minor = _within(entry.dev_minor, 0, 0xFFFFF, path, "device minor number")
    return node


def os_bytes(text: str) -> bytes:
    """`text` as the system takes it."""
    return text.encode("utf-8", "surrogateescape")


def _chunks(
    path: str, entry: TocEntry, more: Iterable[TocEntry], end: int, *, by_digest: bool
) -> tuple[Chunk, ...]:
    chunks = []
    position = 0
    for piece in sorted((entry, *more), key=lambda piece: piece.chunk_offset):
        size = piece.chunk_size or entry.size - piece.chunk_offset
        if piece.chunk_offset != position or not 0 < size <= entry.size - position:
            raise InvalidToc(f"the chunks of {path!r} overlap or leave a gap at byte {position}")
        if not 0 <= piece.offset < end or not 0 <= piece.inner_offset <= _MAX_SIZE:
            raise InvalidToc(f"a chunk of {path!r} lies at byte {piece.offset}, outside the layer")
        text = entry.digest if by_digest else piece.chunk_digest
        chunks.append(Chunk(piece.offset, piece.inner_offset, position, size, _sha256(text, path)))
        position += size
    if position != entry.size:
        raise InvalidToc(f"the chunks of {path!r} have {position} bytes, the file {entry.size}")
    return tuple(chunks)


def _sha256(text: str, path: str) -> bytes:
    try:
        if len(text) != 71 or not text.startswith("sha256:"):
            raise ValueError
        return bytes.fromhex(text[7:])
    except ValueError:
        raise InvalidToc(f"{path!r} has a chunk without a sha256 digest ({text[:80]!r})") from None


def _within(value: int, low: int, high: int, path: str, what: str) -> int:
    if not low <= value <= high:
        raise InvalidToc(f"{path!r} has the {what} {value}, outside {low} to {high}")
    return value


_mtimes: dict[str, int] = {"": 0}


def _seconds(modtime: str, path: str) -> int:
    seconds = _mtimes.get(modtime)
    if seconds is None:
        try:
            seconds = int(datetime.fromisoformat(modtime).timestamp())
        except (ValueError, OverflowError):
            raise InvalidToc(f"{path!r} has the modification time {modtime[:40]!r}, not RFC 3339") from None
        if len(_mtimes) > 4096:
            _mtimes.clear()
            _mtimes[""] = 0
        _mtimes[modtime] = seconds
    return seconds


def _resolve(path: str, hardlinks: dict[str, str]) -> str:
    seen = {path}
    while path in hardlinks:
        path = hardlinks[path]
        if path in seen:
            raise InvalidToc(f"{path!r} is a hard link to itself")
        seen.add(path)
    return path


def _with_parents(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes with implicit parents (0755) added, parents before children."""
    ordered: dict[str, Node] = {"": nodes.get("") or Node("", Kind.DIRECTORY)}
    for path, node in nodes.items():
        missing = []
        parent = path.rpartition("/")[0]
        while parent not in ordered:
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        if ordered[parent].kind is not Kind.DIRECTORY and path:
            raise InvalidToc(f"{path!r} lies below {parent!r}, which is not a directory")
        for directory in reversed(missing):
            own = nodes.get(directory) or Node(directory, Kind.DIRECTORY)
            if own.kind is not Kind.DIRECTORY:
                raise InvalidToc(f"{path!r} lies below {directory!r}, which is not a directory")
            ordered[directory] = own
        ordered[path] = node
    return ordered


def _members(nodes: dict[str, Node], landmark: int | None, end: int) -> list[Member]:
    """The members by offset; sets each chunk's `end`, the offset of the member behind it."""
    pieces: dict[int, list[tuple[Node, Chunk]]] = {}
    for path, node in nodes.items():
        if node.path == path:
            for chunk in node.chunks:
                pieces.setdefault(chunk.offset, []).append((node, chunk))
    offsets = sorted(pieces)
    ends = sorted({*offsets, end} | ({landmark} if landmark else set()))
    members = []
    for offset in offsets:
        stop = ends[bisect_right(ends, offset)]
        held = sorted(pieces[offset], key=lambda piece: piece[1].inner_offset)
        position = 0
        for node, chunk in held:
            if chunk.inner_offset < position:
                raise InvalidToc(f"a chunk of {node.path!r} overlaps another at byte {offset} of the layer")
            position = chunk.inner_offset + chunk.size
            chunk.end = stop
        members.append(Member(offset, stop, held))
    return members
