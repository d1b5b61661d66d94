"""/proc/self/mountinfo, parsed; format in proc_pid_mountinfo(5). Everything but `read_mounts` is pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_PATH: Final = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; `device` is (major, minor), `root` the mount's root within its file system."""

    id: int
    parent: int
    device: tuple[int, int]
    root: str
    target: str
    options: tuple[str, ...]
    shared: bool
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether writes through this mount, or to its file system, are refused."""
        return "ro" in self.options or "ro" in self.super_options


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts in the order of the file: one that covers another comes after it.

    Raises ValueError for a line that is not of mountinfo's form.
    """
    return [_parse_line(line) for line in text.splitlines() if line]


def _parse_line(line: bytes) -> Mount:
    try:
        head, _, tail = line.partition(b" - ")
        id_, parent, device, root, target, options, *tags = head.split(b" ")
        fstype, source, super_options = tail.split(b" ", 2)
        major, _, minor = device.partition(b":")
        return Mount(
            id=int(id_),
            parent=int(parent),
            device=(int(major), int(minor)),
            root=_text(root),
            target=_text(target),
            options=tuple(_text(options).split(",")),
            shared=any(tag.startswith(b"shared:") for tag in tags),
            fstype=_text(fstype),
            source=_text(source),
            super_options=tuple(_text(super_options).split(",")),
        )
    except ValueError:
        raise ValueError(f"not a line of mountinfo: {line[:120]!r}") from None


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def below(mounts: Iterable[Mount], path: str) -> list[Mount]:
    """Those of `mounts` that are on `path` or below it, in their order; `path` is absolute and real."""
    prefix = path.rstrip("/") + "/"
    return [mount for mount in mounts if mount.target == path or mount.target.startswith(prefix)]


def read_mounts() -> list[Mount]:
    """The mounts of our mount namespace. Raises OSError if /proc is not there."""
    with open(_PATH, "rb") as file:
        return parse_mountinfo(file.read())


def mounts_below(path: str) -> list[Mount]:
    """The mounts of our namespace on `path`, symlinks followed, or below it; unmount them in reverse."""
    return below(read_mounts(), os.path.realpath(path))


def is_mount_point(path: str) -> bool:
    """Whether a file system of its own is mounted on the directory `path`; False where it is absent.

    Two stats, no mountinfo, and nothing is asked of the mounted file system's data. A bind mount
    from the same file system does not show.
    """
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path.rstrip("/"))).st_dev
    except FileNotFoundError:
        return False
