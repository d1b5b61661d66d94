"""Comparing whole file trees: everything that a container could see of a file, path by path."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final

ROOT: Final = "."
"""The name under which `scan` lists the tree's root."""

_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One path. `mode` has no type bits, `mtime` is in whole seconds; what a kind does not have is empty."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: str = ""
    rdev: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    content: str = ""
    """A file's sha256, hexadecimal."""
    links: frozenset[str] = frozenset()
    """All paths in the tree of this inode, where it has more than one."""


def scan(root: str, *, contents: bool = True, other_file_systems: bool = False) -> dict[str, Entry]:
    """Every path below `root`, relative to it, and ROOT for itself. Names are decoded by os.fsdecode.

    xattrs named trusted.overlay.* are overlayfs's own and are left out. `contents=False` opens no file.
    Directories of other file systems (a container's /proc, say) are left out unless asked for.
    """
    top = os.lstat(root).st_dev
    found: dict[str, Entry] = {ROOT: _entry(root, os.lstat(root), contents=contents)}
    inodes: dict[tuple[int, int], list[str]] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        below = []
        for name in sorted(os.listdir(os.path.join(root, directory))):
            path = os.path.join(directory, name)
            full = os.path.join(root, path)
            status = os.lstat(full)
            if stat.S_ISDIR(status.st_mode):
                if status.st_dev != top and not other_file_systems:
                    continue
                below.append(path)
            else:
                inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
            found[path] = _entry(full, status, contents=contents)
        pending += reversed(below)
    for paths in inodes.values():
        if len(paths) > 1:
            for path in paths:
                found[path] = replace(found[path], links=frozenset(paths))
    return found


def difference(
    left: Mapping[str, Entry],
    right: Mapping[str, Entry],
    *,
    directory_mtimes: bool = True,
    without: Collection[str] = (),
) -> list[str]:
    """Where two trees differ, one line a difference, sorted by path; [] if they are equal.

    `directory_mtimes=False` does not compare those; `without` leaves out these paths and all below them.
    """
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if any(path == skipped or path.startswith(skipped + "/") for skipped in without):
            continue
        if path not in right:
            lines.append(f"{path!r}: only on the left ({left[path].kind})")
        elif path not in left:
            lines.append(f"{path!r}: only on the right ({right[path].kind})")
        else:
            lines += _aspects(path, left[path], right[path], directory_mtimes=directory_mtimes)
    return lines


def _aspects(path: str, left: Entry, right: Entry, *, directory_mtimes: bool) -> Iterator[str]:
    for aspect in fields(Entry):
        ours, theirs = getattr(left, aspect.name), getattr(right, aspect.name)
        if ours == theirs:
            continue
        if aspect.name == "mtime" and left.kind == right.kind == "directory" and not directory_mtimes:
            continue
        yield f"{path!r}: {aspect.name} {_shown(aspect.name, ours)} != {_shown(aspect.name, theirs)}"


def _shown(aspect: str, value: object) -> str:
    if aspect == "mode":
        return f"{value:04o}"
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(value)) + "}"
    return repr(value)


def _entry(path: str, status: os.stat_result, *, contents: bool) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    is_file, is_symlink = kind == stat.S_IFREG, kind == stat.S_IFLNK
    return Entry(
        _KINDS[kind],
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        int(status.st_mtime_ns // 1_000_000_000),
        size=status.st_size if is_file else 0,
        target=os.readlink(path) if is_symlink else "",
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        xattrs=_xattrs(path),
        content=_sha256(path) if is_file and contents else "",
    )


def _xattrs(path: str) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(os.listxattr(path, follow_symlinks=False))
        if not name.startswith("trusted.overlay.")
    }


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
