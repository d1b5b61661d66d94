"""Every file of a layer against what its table of contents promises, on all processors.

Of a complete layer everything has to be there: files with the right bytes, links, symlinks, devices. Of
one that is not complete only what is there has to be right. Owners, modes and times are not looked at.
"""

from __future__ import annotations

import enum
import functools
import multiprocessing
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final

import msgspec

from fetcher.errors import FetchError
from fetcher.nodes import Kind, Node
from fetcher.plain import PlainLayer, is_verified
from fetcher.store import LayerStore
from mounter.fork_socket import keep_fork_socket_in

_PART_BYTES: Final = 64 << 20
_PART_NODES: Final = 2000
_FORMATS: Final = {
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.WHITEOUT: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}

Progress = Callable[[int, int], None]
"""Told of bytes verified, and of all that are to be."""


class FaultKind(enum.Enum):
    """What is wrong with a file."""

    MISSING = "missing"
    CONTENT = "content"
    """Its bytes are not those that the layer promises."""
    OTHER = "other"
    """It is something else: another kind of file, another target, not the same file as its links."""
    UNREADABLE = "unreadable"
    """The disk does not give it out."""


class Fault(msgspec.Struct, frozen=True):
    """One path of a layer with something wrong."""

    path: str
    kind: FaultKind


class Verdict(msgspec.Struct, frozen=True):
    """What was found in a layer, of whose `entries` `bytes` were looked at.

    `error` says why it could not be looked at, or not be repaired.
    """

    layer: str
    digest: str
    entries: int
    bytes: int
    faults: list[Fault]
    error: str | None
    repaired: bool = False

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return self.repaired or not (self.faults or self.error)


class _Part(msgspec.Struct, frozen=True):
    """A slice of a layer's inodes; picklable."""

    root: str
    layer: str
    start: int
    stop: int
    bytes: int


def verify_layers(store: LayerStore, layers: Sequence[str], progress: Progress) -> Iterator[Verdict]:
    """Verify layers, one after the other, each on all processors. Blocking."""
    plans: list[tuple[str, str, list[_Part], str | None]] = []
    for layer in layers:
        digest, parts, error = "", list[_Part](), None
        try:
            digest = store.record(layer).digest
            parts = _parts(store, layer)
        except FetchError as failure:
            error = str(failure)
        plans.append((layer, digest, parts, error))
    total = sum(part.bytes for _, _, parts, _ in plans for part in parts)
    done = 0
    pool = _pool(store.root)
    try:
        for layer, digest, parts, error in plans:
            faults: list[Fault] = []
            for future in as_completed([pool.submit(_check_part, part) for part in parts]):
                part, found = future.result()
                faults += found
                done += part.bytes
                progress(done, total)
            yield Verdict(
                layer=layer,
                digest=digest,
                entries=sum(part.stop - part.start for part in parts),
                bytes=sum(part.bytes for part in parts),
                faults=sorted(faults, key=lambda fault: fault.path),
                error=error,
            )
    finally:
        pool.shutdown(cancel_futures=True)


def check_node(plain: PlainLayer, node: Node, *, complete: bool) -> FaultKind | None:
    """What is wrong with a node of a layer, None if nothing is."""
    try:
        if node.kind is Kind.REGULAR:
            return _check_file(plain, node, complete=complete)
        status = os.lstat(plain.path(node))
        fine = stat.S_IFMT(status.st_mode) == _FORMATS[node.kind]
        if node.kind is Kind.SYMLINK:
            fine = fine and os.readlink(plain.path(node)) == node.target
        elif node.kind in (Kind.CHARACTER, Kind.BLOCK, Kind.WHITEOUT):
            fine = fine and status.st_rdev == os.makedev(node.major, node.minor)
        return None if fine and _same_links(plain, node, status, complete=complete) else FaultKind.OTHER
    except (FileNotFoundError, NotADirectoryError):
        return FaultKind.MISSING if complete else None
    except OSError:
        return FaultKind.UNREADABLE


def _check_file(plain: PlainLayer, node: Node, *, complete: bool) -> FaultKind | None:
    path = plain.path(node)
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return FaultKind.OTHER
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not is_verified(fd, node):
            return FaultKind.CONTENT
        return None if _same_links(plain, node, os.fstat(fd), complete=complete) else FaultKind.OTHER
    finally:
        os.close(fd)


def _same_links(plain: PlainLayer, node: Node, status: os.stat_result, *, complete: bool) -> bool:
    if not complete:  # links come last
        return True
    return all(os.path.samestat(os.lstat(os.path.join(plain.directory, link)), status) for link in node.links)


def _parts(store: LayerStore, layer: str) -> list[_Part]:
    parts = []
    start, size = 0, 0
    nodes = list(store.tree(layer).inodes())
    for index, node in enumerate(nodes, start=1):
        size += node.size
        if size >= _PART_BYTES or index - start >= _PART_NODES or index == len(nodes):
            parts.append(_Part(store.root, layer, start, index, size))
            start, size = index, 0
    return parts


def _check_part(part: _Part) -> tuple[_Part, list[Fault]]:
    """Runs in a process of the pool."""
    plain, nodes, complete = _opened(part.root, part.layer)
    found = ((node, check_node(plain, node, complete=complete)) for node in nodes[part.start : part.stop])
    return part, [Fault(node.path, kind) for node, kind in found if kind is not None]


@functools.lru_cache(maxsize=1)
def _opened(root: str, layer: str) -> tuple[PlainLayer, list[Node], bool]:
    store = LayerStore(root)
    tree = store.tree(layer)
    return PlainLayer(store.fs(layer), tree), list(tree.inodes()), store.is_complete(layer)


def _pool(root: str) -> ProcessPoolExecutor:
    keep_fork_socket_in(root)
    # Ctrl-C reaches every process of the terminal; the pool ends with the command.
    return ProcessPoolExecutor(
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    )
