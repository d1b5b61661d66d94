"""META as a tmpfs, which is filled file by file: for kernels that cannot have it as an EROFS image.

10 us of processor and 1.35 KB of kernel memory a file, more than half of it the kernel's own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final

from fetcher.nodes import Kind, Node
from fetcher.tree import LayerTree
from mounter.errors import UnsupportedAttribute
from mounter.forks import Child
from mounter.redirects import METACOPY, OPAQUE, REDIRECT, data_directory, own_xattrs
from mounter.syscalls import detached_tmpfs

_LARGE: Final = 24_000
"""Entries from which on a second process is worth its fork."""

_TYPES: Final = {
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
}
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW

# nr_inodes=0: the number of files is bounded by the table of contents, which has a limit of its own.
_OPTIONS: Final = {"mode": "0700", "nr_inodes": "0"}


@contextmanager
def detached_meta_tmpfs(tree: LayerTree, *, layer: str, source: str, processes: int = 1) -> Iterator[int]:
    """A tmpfs that is mounted nowhere and has the tree as `fs`; yields the descriptor of its root.

    A large one is made by so many `processes`, all but one of which are forked off this one: more than one is
    for a process with one thread and no event loop. Raises UnsupportedAttribute, and OSError.
    """
    with detached_tmpfs(source=source, options=_OPTIONS) as fd:
        os.mkdir("fs", dir_fd=fd)
        top = os.open("fs", _DIRECTORY, dir_fd=fd)
        try:
            _fill(top, layer, tree, processes)
        finally:
            os.close(top)
        yield fd


def _fill(top: int, layer: str, tree: LayerTree, processes: int) -> None:
    directories: dict[str, list[Node]] = {"": []}
    hardlinks: list[tuple[str, str]] = []
    odd = False
    for path, node in tree.nodes.items():
        if path != node.path:
            hardlinks.append((node.path, path))
            continue
        if path:
            directories[path.rpartition("/")[0]].append(node)
        if node.kind is Kind.DIRECTORY:
            directories[path] = []
        elif node.xattrs:
            odd = True
    if _lists_newest_first(top):
        # Whoever walks the tree then reads the files in the order in which they lie on the disk.
        for nodes in directories.values():
            nodes.reverse()
    for nodes in directories.values():
        for node in nodes:
            if node.kind is Kind.DIRECTORY:
                os.mkdir(node.path, 0o700, dir_fd=top)
    # Which xattr a tmpfs has refused is only told in this process.
    shares = _shares(directories, 1 if odd or len(tree.nodes) < _LARGE else processes)
    prefix = data_directory(layer)
    with ExitStack() as stack:
        for share in shares[1:]:
            stack.callback(_await, Child(partial(_fill_share, top, share, prefix)))
        _fill_directories(top, shares[0], prefix)
    for primary, path in hardlinks:
        os.link(primary, path, src_dir_fd=top, dst_dir_fd=top, follow_symlinks=False)
    # A directory's attributes last: making its children would have changed its mtime.
    for path in directories:
        _dress_directory(top, tree.nodes[path])


def _lists_newest_first(top: int) -> bool:
    """Whether a tmpfs lists a newer entry before an older one; with some kernels it does not."""
    names = [".older", ".newer"]
    for name in names:
        os.mkdir(name, dir_fd=top)
    listed = os.listdir(top)
    for name in names:
        os.rmdir(name, dir_fd=top)
    return listed.index(".newer") < listed.index(".older")


def _shares(directories: dict[str, list[Node]], count: int) -> list[dict[str, list[Node]]]:
    """The directories that have anything in them, in so many shares of about as many entries. Pure."""
    shares: list[dict[str, list[Node]]] = [{} for _ in range(count)]
    sizes = [0] * count
    for path, nodes in directories.items():
        if nodes:
            least = sizes.index(min(sizes))
            shares[least][path] = nodes
            sizes[least] += len(nodes)
    return shares


def _fill_share(top: int, share: dict[str, list[Node]], prefix: bytes) -> int:
    """Fill these directories; 0, or the number of the error that was met."""
    try:
        _fill_directories(top, share, prefix)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _await(child: Child) -> None:
    status = child.wait()
    if status:
        number = status if status > 0 else errno.EINTR
        raise OSError(number, f"a process that made part of it failed: {os.strerror(number)}")


def _fill_directories(top: int, directories: dict[str, list[Node]], prefix: bytes) -> None:
    masked = _umask()
    for path, nodes in directories.items():
        here = os.open(path or ".", _DIRECTORY, dir_fd=top)
        try:
            _fill_directory(here, nodes, prefix, masked)
        finally:
            os.close(here)


def _fill_directory(here: int, nodes: Iterable[Node], prefix: bytes, masked: int) -> None:
    """All of a directory's own entries but its directories. `here` is open on it."""
    for node in nodes:
        kind = node.kind
        name = node.path.rpartition("/")[2]
        if kind is Kind.REGULAR:
            _make_file(here, name, node, prefix, masked)
        elif kind is Kind.WHITEOUT:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=here)
        elif kind is not Kind.DIRECTORY:
            _make_special(here, name, node)


def _make_file(here: int, name: str, node: Node, prefix: bytes, masked: int) -> None:
    mode = node.mode
    fd = os.open(name, _CREATE, mode, dir_fd=here)
    try:
        if node.size:
            os.ftruncate(fd, node.size)
        if node.uid or node.gid:
            os.fchown(fd, node.uid, node.gid)
            if mode & 0o6000:
                os.fchmod(fd, mode)
        if mode & masked:
            os.fchmod(fd, mode)
        if node.size:
            os.setxattr(fd, METACOPY, b"")
            os.setxattr(fd, REDIRECT, prefix + os.fsencode(node.path))
        if node.xattrs:
            _set_xattrs(fd, node)
        os.utime(fd, (node.mtime, node.mtime))
    finally:
        os.close(fd)


def _make_special(here: int, name: str, node: Node) -> None:
    """A symlink, device or FIFO."""
    if node.kind is Kind.SYMLINK:
        os.symlink(node.target, name, dir_fd=here)
        os.chown(name, node.uid, node.gid, dir_fd=here, follow_symlinks=False)
    else:
        os.mknod(name, _TYPES[node.kind] | 0o600, os.makedev(node.major, node.minor), dir_fd=here)
        os.chown(name, node.uid, node.gid, dir_fd=here, follow_symlinks=False)
        os.chmod(name, node.mode, dir_fd=here)
    if node.xattrs:
        _set_xattrs(f"/proc/self/fd/{here}/{name}", node)
    os.utime(name, (node.mtime, node.mtime), dir_fd=here, follow_symlinks=False)


def _dress_directory(top: int, node: Node) -> None:
    fd = os.open(node.path or ".", _DIRECTORY, dir_fd=top)
    try:
        os.fchown(fd, node.uid, node.gid)
        os.fchmod(fd, node.mode)
        if node.opaque:
            os.setxattr(fd, OPAQUE, b"y")
        if node.xattrs:
            _set_xattrs(fd, node)
        os.utime(fd, (node.mtime, node.mtime))
    finally:
        os.close(fd)


def _set_xattrs(file: int | str, node: Node) -> None:
    """The layer's own xattrs; last but for the times, because chown and truncate drop capabilities."""
    for name, value in own_xattrs(node):
        try:
            if isinstance(file, int):
                os.setxattr(file, name, value)
            else:
                os.setxattr(file, name, value, follow_symlinks=False)
        except OSError as error:
            raise UnsupportedAttribute(
                f"the xattr {name!r} of {node.path!r} cannot be set on a tmpfs here: {error.strerror}",
                path=node.path,
                attribute=name,
            ) from error


def _umask() -> int:
    """The process's umask, read without changing it, as other threads rely on it."""
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line[6:], 8)
    return 0o777
