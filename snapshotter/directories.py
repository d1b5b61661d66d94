"""The directories of ordinary snapshots: ROOT/snapshots/<id>/{fs,work}.

    new-<random>     being made; renamed to <id> in the metadata transaction
    <id>             of the snapshot with that id; an orphan if no row has it
    dead-<random>    no row has it: being deleted

So a crash leaves `new-`, `dead-` and orphans, all of which `set_aside` finds.
Everything here blocks; the caller sees to it that `set_aside` and the making
of a snapshot never overlap.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection

from snapshotter.metadata import Usage


class Directories:
    """ROOT/snapshots; made with mode 0700 if it is absent."""

    def __init__(self, path: str) -> None:
        # As the kernel names it: mountinfo is searched for it.
        self._path = os.path.realpath(path)
        os.makedirs(path, mode=0o700, exist_ok=True)

    def fs(self, snapshot_id: int) -> str:
        """Path of the snapshot's own files: an overlay's upperdir, later a lowerdir."""
        return os.path.join(self._path, str(snapshot_id), "fs")

    def work(self, snapshot_id: int) -> str:
        """Path of the overlay's workdir; only active snapshots have one."""
        return os.path.join(self._path, str(snapshot_id), "work")

    def make(self, *, writable: bool) -> str:
        """Make a snapshot's directories under a temporary name, which is returned."""
        path = tempfile.mkdtemp(prefix="new-", dir=self._path)
        try:
            # chmod: a container sees fs as its root directory, whatever our umask is.
            for name, mode in (("fs", 0o755), ("work", 0o711))[: 2 if writable else 1]:
                os.mkdir(os.path.join(path, name))
                os.chmod(os.path.join(path, name), mode)
        except BaseException:
            self.discard(path)
            raise
        return path

    def adopt(self, path: str, snapshot_id: int) -> None:
        """Give directories that `make` made their final name.

        A transaction that is rolled back frees its id, so an orphan may have that name.
        """
        final = os.path.join(self._path, str(snapshot_id))
        if os.path.lexists(final):
            self._kill(final)
        os.rename(path, final)

    def discard(self, path: str) -> None:
        """Delete what `make` made, as far as it goes."""
        shutil.rmtree(path, ignore_errors=True)

    def take_owner(self, snapshot_id: int, lower: str) -> None:
        """Give fs the owner that the root directory of what lies below has."""
        below = os.stat(lower)
        os.chown(self.fs(snapshot_id), below.st_uid, below.st_gid)

    def set_aside(self, live: Collection[int]) -> list[str]:
        """Rename every directory that belongs to no live id; give them all, for `delete`."""
        live_names = {str(snapshot_id) for snapshot_id in live}
        dead = []
        with os.scandir(self._path) as entries:
            for entry in list(entries):
                if entry.name not in live_names:
                    dead.append(entry.path if entry.name.startswith("dead-") else self._kill(entry.path))
        return dead

    def delete(self, path: str) -> str | None:
        """Delete what `set_aside` gave; a reason if it has to stay for a later try.

        It never deletes through a mount: one made below a bind mount of ours
        appears here as well where mounts propagate.
        """
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                if _unescape(line.split(" ", 5)[4]).startswith(path + "/"):
                    return f"something is mounted on {_unescape(line.split(' ', 5)[4])}"
        failures: list[str] = []

        def failed(function: Callable[..., object], where: str, error: BaseException) -> None:
            if not isinstance(error, FileNotFoundError):
                failures.append(str(error))

        # onerror gets exc_info; its successor onexc is of Python 3.12.
        shutil.rmtree(path, onerror=lambda function, where, info: failed(function, where, info[1]))
        return failures[0] if failures else None

    def _kill(self, path: str) -> str:
        grave = tempfile.mkdtemp(prefix="dead-", dir=self._path)
        os.rename(path, os.path.join(grave, os.path.basename(path)))
        return grave


def disk_usage(path: str) -> Usage:
    """Count what a directory tree takes: allocated bytes and inodes, hard links once.

    The directory itself counts too. Files that go away meanwhile are left out,
    and so is what is mounted inside.
    """
    top = os.lstat(path)
    size, inodes = top.st_blocks * 512, 1
    seen: set[int] = set()
    directories = [path]
    while directories:
        try:
            entries = os.scandir(directories.pop())
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_dev != top.st_dev or status.st_ino in seen:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    directories.append(entry.path)
                elif status.st_nlink > 1:
                    seen.add(status.st_ino)
                size += status.st_blocks * 512
                inodes += 1
    return Usage(size, inodes)


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blank, tab, newline and backslash."""
    for escaped, plain in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(escaped, plain)
    return field
