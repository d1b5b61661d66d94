"""Writing a layer's plain directory. Blocking; called from worker processes and threads.

A regular file is written to an unnamed temporary file (O_TMPFILE) with its
owner, mode, xattrs and times, and then linked to its name: it is there whole or
not at all, a crash leaves nothing behind, and of two writers the first wins, so
a file that a container has open is never replaced.

Everything else (directories' attributes, symlinks, devices, hard links,
whiteouts) is made by `finish`, which nobody needs before the layer is complete.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import xattr

from fetcher.errors import StoreError
from fetcher.limits import Slowness, refused
from fetcher.logs import get_logger
from fetcher.nodes import DIRECTORY, REGULAR, SYMLINK, WHITEOUT, Kind, Node
from fetcher.tree import LayerTree

_slowness: Final = Slowness(get_logger("layergate.plain"))
_libc = ctypes.CDLL(None, use_errno=True)
_BLOCK: Final = 1 << 20
_FORMATS: Final = {Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK, Kind.FIFO: stat.S_IFIFO}


class PlainFile:
    """One regular file being written, by any thread; nobody sees it before `commit`. Close it in any case."""

    __slots__ = ("_directory", "_reached", "fd", "node")

    def __init__(self, directory: str, node: Node, reached: set[str]) -> None:
        self._directory = directory
        self._reached = reached
        self.node = node
        # Not `with _refusals`, here and below: entering it three times a file costs a tenth of writing it.
        try:
            # With its mode, so that most files need not be given it again; not with what chown takes away.
            self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, node.mode & 0o777)
        except OSError as error:
            raise _refusal(node.path, error) from error

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write verified bytes at `offset`; each byte of the file is to be written once."""
        since = time.monotonic()
        try:
            written = os.pwrite(self.fd, data, offset)
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], offset + written)
        except OSError as error:
            raise _refusal(self.node.path, error) from error
        _slowness.look(since, self._directory)

    def commit(self) -> bool:
        """Give the file its attributes and its name; False if another writer was first."""
        since = time.monotonic()
        try:
            set_attributes(self.fd, self.node)
            parent = self.node.path.rpartition("/")[0]
            try:
                if parent not in self._reached:
                    self._reach(parent)
                self._link()
            except FileNotFoundError:
                self._reached.clear()
                self._reach(parent)
                self._link()
        except FileExistsError:
            return False
        except OSError as error:
            raise _refusal(self.node.path, error) from error
        _slowness.look(since, self._directory)
        return True

    def _link(self) -> None:
        # src_dir_fd makes Python call linkat(AT_SYMLINK_FOLLOW), which O_TMPFILE needs.
        path = f"{self._directory}/{self.node.path}"
        os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, follow_symlinks=True)

    def _reach(self, parent: str) -> None:
        """Make the directories that lead to the file, but not the layer's own: that may have been removed.

        None of them may be a symlink, or the file would come to lie elsewhere; those that are known to be
        directories are kept in mind, for nobody replaces one.
        """
        path = ""
        for name in parent.split("/") if parent else ():
            path = f"{path}/{name}" if path else name
            if path not in self._reached:
                make_directory(f"{self._directory}/{path}")
                self._reached.add(path)

    def close(self) -> None:
        """Give up the descriptor; without `commit` the bytes are gone."""
        os.close(self.fd)


class PlainLayer:
    """The plain directory of one layer."""

    def __init__(self, directory: str, tree: LayerTree) -> None:
        self.directory = directory
        self.tree = tree
        self._reached = {""}
        """Directories that were seen to be directories, and no symlinks to others."""

    def path(self, node: Node) -> str:
        """Where the node's file is, or will be."""
        return f"{self.directory}/{node.path}"

    def has(self, node: Node) -> bool:
        """Whether a regular file is here."""
        # Of one that is not, lexists takes twice as long: an exception is made and thrown away.
        return os.access(self.path(node), os.F_OK, follow_symlinks=False)

    def create(self, node: Node) -> PlainFile:
        """Start writing a regular file; raises StoreError if the disk refuses."""
        return PlainFile(self.directory, node, self._reached)

    def write(self, node: Node, data: bytes | memoryview) -> bool:
        """Write a whole file of verified bytes; False if it was here already."""
        file = self.create(node)
        try:
            file.write(data, 0)
            return file.commit()
        finally:
            file.close()

    def make_directories(self) -> None:
        """Make every directory of the layer; their attributes come with `finish`.

        Files make those that lead to them: this costs 0.1 ms each, before the first of the rest comes.
        """
        with _refusals(self.directory):
            for path, node in self.tree.nodes.items():
                if node.kind is DIRECTORY:
                    make_directory(os.path.join(self.directory, path))

    def drop_unverified(self) -> int:
        """Remove each file here whose content or size is not what its chunks promise; how many."""
        dropped = 0
        for node in self.tree.regular_files():
            with _refusals(node.path):
                try:
                    with open(self.path(node), "rb", buffering=0) as file:
                        if is_verified(file.fileno(), node):
                            continue
                except FileNotFoundError:
                    continue
                os.unlink(self.path(node))
                dropped += 1
        return dropped

    def finish(self) -> None:
        """Make all that is not a regular file with content, and set directories' attributes; `sync` follows.

        Every regular file must be here. May be repeated after a crash. Raises StoreError, also where a
        file is missing: whoever marks the layer complete next promises that none is.
        """
        directories = []
        for node in self.tree.inodes():
            with _refusals(node.path):
                if node.kind is DIRECTORY:
                    directories.append(node)
                elif node.kind is REGULAR:
                    if not self.has(node):
                        if node.size:
                            raise FileNotFoundError(errno.ENOENT, "it has not been fetched")
                        self.write(node, b"")
                else:
                    self.make_special(node)
                for link in node.links:
                    self._replace(link, partial(os.link, self.path(node), follow_symlinks=False))
        for node in reversed(directories):
            with _refusals(node.path):
                self.finish_directory(node)

    def finish_directory(self, node: Node) -> None:
        """Give a directory its attributes, which nothing may be made in any more. Raises OSError."""
        fd = os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            set_attributes(fd, node)
            if node.opaque:
                os.setxattr(fd, "trusted.overlay.opaque", b"y")
        finally:
            os.close(fd)

    def make_special(self, node: Node) -> None:
        """Make what is neither a regular file nor a directory, in place of what is there. Raises OSError."""

        def make(path: str) -> None:
            if node.kind is SYMLINK:
                os.symlink(node.target, path)
            elif node.kind is WHITEOUT:
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
            else:
                os.mknod(path, _FORMATS[node.kind] | 0o600, os.makedev(node.major, node.minor))
            set_attributes(path, node)

        self._replace(node.path, make)

    def _replace(self, name: str, make: Callable[[str], None]) -> None:
        path = os.path.join(self.directory, name)
        try:
            make(path)
        except FileExistsError:
            os.unlink(path)
            make(path)

    def sync(self) -> None:
        """Have all that was written on disk. Raises StoreError."""
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(fd):
                number = ctypes.get_errno()
                raise StoreError(f"cannot sync {self.directory}: {os.strerror(number)}", errno=number)
        finally:
            os.close(fd)


def make_directory(path: str) -> None:
    """Make a directory if it is not there. Raises OSError; ENOTDIR where a symlink or a file is instead."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            reason = "something else is in a directory's place"
            raise NotADirectoryError(errno.ENOTDIR, reason, path) from None


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """The boundary at which the system's refusals become StoreError."""
    try:
        yield
    except OSError as error:
        raise _refusal(name, error) from error


def _refusal(name: str, error: OSError) -> StoreError:
    return StoreError(f"cannot write {name!r}: {refused(error)}", errno=error.errno or 0)


def set_attributes(target: int | str, node: Node) -> None:
    """Owner, mode, xattrs, times, in the order in which none undoes another (chown clears suid and caps).

    What the target has already is not set again: two journaled changes less for most files.
    """
    follow = isinstance(target, int)
    now = os.stat(target, follow_symlinks=follow)
    owned = (now.st_uid, now.st_gid) == (node.uid, node.gid)
    if not owned:
        os.chown(target, node.uid, node.gid, follow_symlinks=follow)
    if node.kind is not SYMLINK and not (owned and stat.S_IMODE(now.st_mode) == node.mode):
        os.chmod(target, node.mode)
    for name, value in node.xattrs.items():
        try:
            xattr.setxattr(target, name, value, symlink=not follow)
        except OSError as error:
            # A name that this system knows no place for, com.apple.* say: as containerd does, go without.
            if error.errno != errno.ENOTSUP:
                raise
    mtime = node.mtime * 1_000_000_000
    os.utime(target, ns=(mtime, mtime), follow_symlinks=follow)


def is_verified(fd: int, node: Node) -> bool:
    """Whether a file has the size, and each chunk of it the digest, that the layer promises."""
    if os.fstat(fd).st_size != node.size:
        return False
    for chunk in node.chunks:
        digest = hashlib.sha256()
        for offset in range(chunk.file_offset, chunk.file_offset + chunk.size, _BLOCK):
            digest.update(os.pread(fd, min(_BLOCK, chunk.file_offset + chunk.size - offset), offset))
        if digest.digest() != chunk.digest:
            return False
    return True
