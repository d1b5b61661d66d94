"""The file tree that a table of contents describes. Pure; no I/O.

`build_tree` is the one place that decides what a layer looks like: every name
is normalised and cannot leave the layer, every path has one node, only
directories have children, and the chunks of a file cover it exactly. Whoever
writes or mounts a tree may rely on that.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from datetime import datetime
from math import floor
from typing import Final

from fetcher.chunks import MAX_SIZE, file_chunks, layer_members, within
from fetcher.errors import InvalidToc
from fetcher.nodes import (
    DIRECTORY,
    NO_LINKS,
    NO_XATTRS,
    REGULAR,
    SYMLINK,
    WHITEOUT,
    Chunk,
    Kind,
    Member,
    Node,
)
from fetcher.toc import TOC_NAME, Entry, ShownEntry, Toc, TocEntry

LANDMARK: Final = ".prefetch.landmark"
NO_LANDMARK: Final = ".no.prefetch.landmark"
NAME_LIMIT: Final = 255
PATH_LIMIT: Final = 3500
"""Bytes in a path: PATH_MAX (4096) less room for the directory that the layer lies in."""
DEPTH_LIMIT: Final = 256
"""Parts of a path: whoever walks a tree by recursion may do so."""

_HIDDEN = frozenset({LANDMARK, NO_LANDMARK, TOC_NAME})
_UNCLEAN_BEGINS = ("/", ".")
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
STEERING: Final = ("trusted.overlay.", "user.overlay.")
"""The beginnings of xattrs that overlayfs obeys: none of an image's is ever taken over."""
_SPACES = ("user.", "trusted.", "security.", "system.")
"""The name spaces that Linux has for xattrs."""
_XATTRS = ("user.", "security.", "system.")
"""Those that are kept: containerd leaves out trusted.*, as everybody does other systems' (com.apple.*)."""
_TARGET_LIMIT = 4095
_NO_CHUNKS: Final[tuple[Chunk, ...]] = ()
_MODES: Final = list(range(0o10000))
"""One int for all the nodes that have this mode."""
_SPENT: Final = ShownEntry("", "")
"""In the place of an entry whose node stands."""
_IMPLIED_LIMIT: Final = 64 << 20
"""Characters in the paths of directories without an entry, which cost a TOC next to nothing."""

_KINDS = {
    "dir": DIRECTORY,
    "reg": REGULAR,
    "symlink": SYMLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}


class LayerTree:
    """A layer's nodes by path, parents before children; a hard link's path maps to its primary's node.

    `landmark` is where the prefetch range [0, landmark) ends, None where there is none;
    `end` is where the last member ends, which is where the TOC starts; `implied` are the
    directories that have no entry of their own, but something in them has.
    """

    __slots__ = ("_children", "end", "implied", "landmark", "members", "nodes")

    def __init__(
        self,
        nodes: dict[str, Node],
        members: list[Member],
        *,
        landmark: int | None,
        end: int,
        implied: Sequence[str] = (),
    ) -> None:
        self.nodes = nodes
        self.implied = implied
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


def build_tree(toc: Toc[Entry], *, end: int, spend: bool = False) -> LayerTree:
    """The tree of a decoded TOC whose members end at byte `end` of the blob.

    Of a TOC that was decoded by `parse_shown` it has neither chunks nor members, nor a landmark.

    It shares no text and no number with the TOC (`_copy`, `join`, `+ 0`): what is left among hundreds of
    thousands of freed entries would keep all of their memory from the system. With `spend` the TOC is left
    without entries, and each goes as its node comes: of a process with 59,000 that is 83 instead of 109 MB
    while the tree is made, but 73 instead of 64 MB afterwards, as some of what was freed lies between nodes.
    Raises InvalidToc, naming the entry, for anything that would lead out of the layer or contradicts itself.
    """
    entries, chunks = _last_wins(toc)
    if spend:
        toc.entries = []
    landmark: int | None = None
    nodes: dict[str, Node] = {}
    hardlinks: dict[str, str] = {}
    whiteouts: list[str] = []
    opaques: list[str] = []
    for path, entry in entries.items():
        if path in _HIDDEN:
            if path == LANDMARK and NO_LANDMARK not in entries and isinstance(entry, TocEntry):
                landmark = within(entry.offset, 0, end, path, "offset")
            continue
        if _WHITEOUT in path and (name := path.rpartition("/")[2]).startswith(_WHITEOUT):
            if name == _OPAQUE:
                opaques.append(path.rpartition("/")[0])
            elif not name.startswith(_AUFS):
                whiteouts.append(path)
            continue
        if entry.type == "hardlink":
            hardlinks[_copy(path)] = _clean(entry.link_name)
            continue
        own = _copy(path)
        nodes[own] = _node(own, entry, chunks.get(path, ()), end)
        if spend:
            entries[path] = _SPENT
    _link(nodes, hardlinks)
    for path in opaques:
        node = nodes.setdefault(path, Node(path, DIRECTORY))
        if node.kind is not DIRECTORY:
            raise InvalidToc(f"{path!r} is said to be opaque, but is not a directory")
        node.opaque = True
    if whiteouts:
        nodes = _with_whiteouts(nodes, whiteouts)
    ordered = _with_parents(nodes)
    implied = [path for path, node in ordered.items() if node.kind is DIRECTORY and path not in entries]
    members = layer_members(ordered, landmark, end)
    return LayerTree(ordered, members, landmark=landmark, end=end, implied=[path for path in implied if path])


def _last_wins(toc: Toc[Entry]) -> tuple[dict[str, ShownEntry], dict[str, list[Entry]]]:
    """Entries by clean path, the last of a name winning, and the chunk entries that follow each."""
    entries: dict[str, ShownEntry] = {}
    chunks: dict[str, list[Entry]] = {}
    for entry in toc.entries:
        path = _clean(entry.name)
        if entry.type == "chunk":
            owner = entries.get(path)
            if owner is None or owner.type != "reg":
                raise InvalidToc(f"a chunk of {path!r} comes before the file itself")
            chunks.setdefault(path, []).append(entry)
        else:
            if path in entries:  # else it would keep the place of the one before it
                del entries[path]
                chunks.pop(path, None)
            entries[path] = entry
    return entries, chunks


def _clean(name: str) -> str:
    """clean("/" + name) of the specification, without its leading slash."""
    if (
        len(name) <= NAME_LIMIT
        and not name.startswith(_UNCLEAN_BEGINS)
        and "/." not in name
        and "//" not in name
        and "\0" not in name
        and name.isascii()
    ):
        # As nearly all are; normpath takes ten times as long.
        return name[:-1] if name.endswith("/") else name
    if "\0" in name:
        raise InvalidToc(f"the name {name!r} contains a zero byte")
    path = posixpath.normpath("/" + name).lstrip("/")
    length = _length(path, path)
    if length > NAME_LIMIT:
        if length > PATH_LIMIT:
            raise InvalidToc(f"the name {path[:60]!r}... has {length} bytes, more than {PATH_LIMIT}")
        if any(_length(part, path) > NAME_LIMIT for part in path.split("/")):
            raise InvalidToc(f"a part of the name {path[:60]!r}... has more than {NAME_LIMIT} bytes")
        if path.count("/") >= DEPTH_LIMIT:
            raise InvalidToc(f"the name {path[:60]!r}... has more than {DEPTH_LIMIT} parts")
    return path


def _copy(text: str) -> str:
    return "".join((text, ""))


def _length(text: str, path: str) -> int:
    """The bytes of `text`, which belongs to the entry at `path`, as the system takes it."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidToc(f"{text[:60]!r} of {path[:60]!r} cannot be encoded: {error.reason}") from None


def _node(path: str, entry: ShownEntry, more: Sequence[ShownEntry], end: int) -> Node:
    kind = _KINDS.get(entry.type)
    if kind is None:
        raise InvalidToc(f"{path!r} has the unknown type {entry.type[:40]!r}")
    if path == "" and kind is not DIRECTORY:
        raise InvalidToc(f"the layer's root is a {kind.value}, not a directory")
    uid = gid = size = 0
    xattrs, chunks = NO_XATTRS, _NO_CHUNKS
    if entry.uid or entry.gid:
        uid = within(entry.uid, 0, 0xFFFFFFFE, path, "uid") + 0
        gid = within(entry.gid, 0, 0xFFFFFFFE, path, "gid") + 0
    if entry.xattrs:
        xattrs = _xattrs(path, kind, entry.xattrs)
    if kind is REGULAR:
        size = entry.size + 0
        if size and isinstance(entry, TocEntry):
            chunks = file_chunks(path, size, entry, more, end)
        elif size:
            within(size, 0, MAX_SIZE, path, "size")
    mode, mtime = _MODES[entry.mode & 0o7777], _mtimes.get(entry.modtime)
    if mtime is None:
        mtime = _seconds(entry.modtime, path)
    # By position, and all of them: a third of the time.
    node = Node(path, kind, mode, uid, gid, mtime, size, "", 0, 0, xattrs, False, chunks, NO_LINKS)
    if kind is not REGULAR and kind is not DIRECTORY:
        _complete(node, entry)
    return node


def _complete(node: Node, entry: ShownEntry) -> None:
    """What neither files nor directories have."""
    path = node.path
    if node.kind is SYMLINK:
        if not entry.link_name or "\0" in entry.link_name or _length(entry.link_name, path) > _TARGET_LIMIT:
            raise InvalidToc(f"the symlink {path!r} has an invalid target")
        node.target = _copy(entry.link_name)
    elif node.kind in (Kind.CHARACTER, Kind.BLOCK):
        node.major = within(entry.dev_major, 0, 0xFFF, path, "device major number")
        node.minor = within(entry.dev_minor, 0, 0xFFFFF, path, "device minor number")
        if node.kind is Kind.CHARACTER and not node.major and not node.minor:
            node.kind = WHITEOUT


def _xattrs(path: str, kind: Kind, xattrs: dict[str, bytes]) -> dict[str, bytes]:
    """Those of an entry that are kept."""
    for name in xattrs:
        if name.startswith(STEERING):
            raise InvalidToc(f"{path!r} carries the xattr {name!r}, which would steer overlayfs")
        if not name or name in _SPACES or "\0" in name or _length(name, path) > NAME_LIMIT:
            raise InvalidToc(f"{path!r} carries an xattr with the invalid name {name[:60]!r}")
    # The kernel keeps user.* on files and directories only; every unpacker drops the others.
    kept = _XATTRS if kind in (REGULAR, DIRECTORY) else _XATTRS[1:]
    return {_copy(name): b"".join((value, b"")) for name, value in xattrs.items() if name.startswith(kept)}


_mtimes: dict[str, int] = {"": 0}


def _seconds(modtime: str, path: str) -> int:
    seconds = _mtimes.get(modtime)
    if seconds is None:
        try:
            time = datetime.fromisoformat(modtime)
            if time.tzinfo is None:
                raise ValueError
            seconds = floor(time.timestamp())
        except (ValueError, OverflowError):
            raise InvalidToc(f"{path!r} has the modification time {modtime[:40]!r}, not RFC 3339") from None
        if len(_mtimes) > 4096:
            _mtimes.clear()
            _mtimes[""] = 0
        _mtimes[_copy(modtime)] = seconds
    return seconds


def _link(nodes: dict[str, Node], hardlinks: dict[str, str]) -> None:
    """Add the hard links' paths to `nodes` and to the nodes that they lead to."""
    for path, target in hardlinks.items():
        node = nodes.get(_resolve(path, hardlinks))
        if node is None:
            raise InvalidToc(f"{path!r} is a hard link to {target!r}, which is not in the layer")
        if node.kind is DIRECTORY:
            raise InvalidToc(f"{path!r} is a hard link to the directory {node.path!r}")
        if node.links:
            node.links.append(path)
        else:
            node.links = [path]
    for path, target in hardlinks.items():
        nodes[path] = nodes[target]


def _resolve(path: str, hardlinks: dict[str, str]) -> str:
    """Where the chain of hard links from `path` ends; makes all of it point there, so as to walk it once."""
    chain = []
    end = path
    while end in hardlinks:
        chain.append(end)
        end = hardlinks[end]
        if len(chain) > len(hardlinks):
            raise InvalidToc(f"{path!r} is a hard link to itself")
    for link in chain:
        hardlinks[link] = end
    return end


def _with_whiteouts(nodes: dict[str, Node], whiteouts: list[str]) -> dict[str, Node]:
    """The nodes with their parents and with what whiteouts hide; a name that the layer itself has stays."""
    for path in whiteouts:
        parent = path.rpartition("/")[0]
        nodes.setdefault(parent, Node(parent, DIRECTORY))
    nodes = _with_parents(nodes)
    for path in whiteouts:
        parent, _, name = path.rpartition("/")
        hidden = name[len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise InvalidToc(f"{path!r} is a whiteout of no name")
        covered = f"{parent}/{hidden}" if parent else hidden
        if covered not in nodes:
            nodes[covered] = Node(covered, WHITEOUT, 0)
    return nodes


def _with_parents(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes with implicit parents (0755) added, parents before children."""
    ordered: dict[str, Node] = {"": nodes.get("") or Node("", DIRECTORY)}
    implied = 0
    for path, node in nodes.items():
        missing = []
        parent = path.rpartition("/")[0]
        while parent not in ordered:
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        if ordered[parent].kind is not DIRECTORY and path:
            raise InvalidToc(f"{path!r} lies below {parent!r}, which is not a directory")
        for directory in reversed(missing):
            own = nodes.get(directory)
            if own is None:
                own = Node(directory, DIRECTORY)
                implied += len(directory)
                if implied > _IMPLIED_LIMIT:
                    raise InvalidToc(
                        f"too many directories have no entry of their own, {directory[:60]!r} is one"
                    )
            if own.kind is not DIRECTORY:
                raise InvalidToc(f"{path!r} lies below {directory!r}, which is not a directory")
            ordered[directory] = own
        ordered[path] = node
    return ordered
