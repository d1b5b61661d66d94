"""Builders for what the mount tests share: trees, a node's directories, and a gate that counts."""

from __future__ import annotations

import errno
import os
import select
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fetcher.nodes import Kind, Node
from fetcher.tree import LayerTree
from mounter.lowers import Part, mount_lazy_lower
from mounter.meta import MetaForm, ensure_meta
from mounter.mountinfo import mounts_below
from mounter.syscalls import detach, mount, mount_overlay


def directory(path: str, *, mode: int = 0o755, mtime: int = 0, opaque: bool = False) -> Node:
    node = Node(path, Kind.DIRECTORY, mode)
    node.mtime = mtime
    node.opaque = opaque
    return node


def file(path: str, size: int = 5, *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 0) -> Node:
    node = Node(path, Kind.REGULAR, mode)
    node.size = size
    node.uid = uid
    node.gid = gid
    node.mtime = mtime
    return node


def symlink(path: str, target: str) -> Node:
    node = Node(path, Kind.SYMLINK, 0o777)
    node.target = target
    return node


def device(path: str, kind: Kind, major: int, minor: int, *, mode: int = 0o666) -> Node:
    node = Node(path, kind, mode)
    node.major = major
    node.minor = minor
    return node


def whiteout(path: str) -> Node:
    return Node(path, Kind.WHITEOUT, 0)


def tree(*nodes: Node) -> LayerTree:
    """A layer's tree; parents come before children, the root may be left out, links are the nodes' own."""
    by_path = {"": Node("", Kind.DIRECTORY)}
    by_path |= {node.path: node for node in nodes}
    by_path |= {link: node for node in nodes for link in node.links}
    return LayerTree(by_path, [], landmark=None, end=0)


class LazyNode:
    """A data directory: ordinary directories stand where the gate and its links would be."""

    def __init__(self, root: str, form: MetaForm = MetaForm.EROFS) -> None:
        self.root = root
        self.form = form
        for name in ("layers", "gate", "late"):
            os.mkdir(os.path.join(root, name))

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def add(self, layer: str, *nodes: Node) -> str:
        """Make META of a layer; gives its path."""
        os.makedirs(self.path("layers", layer, "fs"), exist_ok=True)
        return ensure_meta(self.root, layer, tree(*nodes), self.form)

    def land(self, layer: str, path: str, content: bytes = b"hello", *, place: str = "layers") -> None:
        """A file arrives as the background fetcher brings it: whole, by rename."""
        final = self.path(place, layer, "fs", path)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with open(self.path("arriving"), "wb") as arriving:
            arriving.write(content)
        os.rename(self.path("arriving"), final)

    def lazy(self, *parts: Part, generation: str = "g1") -> str:
        return mount_lazy_lower(self.root, parts, generation)

    def container(self, lower: Sequence[str], *, name: str = "c", xino: str = "on") -> str:
        """Mount a container's overlay; the same name again reuses its upper directory."""
        merged, upper, work = (self.path(f"{name}-{part}") for part in ("merged", "upper", "work"))
        for path in (merged, upper, work):
            os.makedirs(path, exist_ok=True)
        options = {"upperdir": upper, "workdir": work, "xino": xino}
        mount_overlay(merged, lower=lower, options=options, read_only=False)
        return merged


def read(*parts: str) -> bytes:
    with open(os.path.join(*parts), "rb") as opened:
        return opened.read()


class CountingGate:
    """A FUSE file system without any file, spoken by hand; `lookups` are the names it was asked for."""

    _LOOKUP, _FORGET, _GETATTR, _STATFS, _INIT, _BATCH_FORGET = 1, 2, 3, 17, 26, 42

    def __init__(self, fd: int) -> None:
        self.lookups: list[str] = []
        self._fd = fd
        self._stop, self._stopping = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Die: from now on the file system answers ENOTCONN to everybody."""
        if self._fd < 0:
            return
        os.write(self._stopping, b"x")
        self._thread.join()
        for fd in (self._fd, self._stop, self._stopping):
            os.close(fd)
        self._fd = -1

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._fd, self._stop], [], [])
            if self._stop in ready:
                return
            try:
                request = os.read(self._fd, 1 << 17)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: an interrupted request
                    continue
                os.read(self._stop, 1)  # ENODEV: the file system ended before us
                return
            _, operation, unique = struct.unpack_from("<IIQ", request)
            if operation in (self._FORGET, self._BATCH_FORGET):
                continue
            code, body = self._answer(operation, request[40:])
            os.write(self._fd, struct.pack("<IiQ", 16 + len(body), -code, unique) + body)

    def _answer(self, operation: int, body: bytes) -> tuple[int, bytes]:
        if operation == self._INIT:
            return 0, struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 8, 8, 1 << 16, 1, 16, 0, *([0] * 8))
        if operation == self._GETATTR:
            return 0, struct.pack("<QII6Q10I", 60, 0, 0, 1, *([0] * 8), 0o40755, 2, *([0] * 5))
        if operation == self._STATFS:
            return 0, struct.pack("<5Q10I", *([0] * 5), 4096, 255, 4096, *([0] * 7))
        if operation == self._LOOKUP:
            self.lookups.append(os.fsdecode(body.rstrip(b"\0")))
            return errno.ENOENT, b""
        return errno.ENOSYS, b""


@contextmanager
def counting_gate(target: str) -> Iterator[CountingGate]:
    """Mount one on `target`; at the end its connection is closed, so nothing can hang on it."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    gate = CountingGate(fd)
    mount("gate", target, "fuse", options=f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other")
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()
        for _ in mounts_below(target):
            detach(target)
