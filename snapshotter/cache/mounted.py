"""Which layers the mounts of this machine stand on, as mountinfo tells it.

A mount needs a layer if it is

    an overlay that names     ROOT/layers/<layer>/fs       the layer itself
                              ROOT/lazy/<id>               the layers of that lazy lower
                              ROOT/meta/<layer>/fs         a lazy lower's own lower directories, so:
                                                           a bind mount of a lazy lower
                              ROOT/gate/<layer>/fs         where the gate shows whole trees
                              <layer>/fs, <id>             the same, shortened: containerd does that where
                                                           the options would not fit into a page
    a bind mount of           ROOT/layers/<layer>/fs, or of what is in there

Lazy lowers at their own mount points, and copies of them elsewhere, are nobody's use; one that was released
may have mounts on it still. Each mount namespace that has a process is looked at, as a mount need not be in
ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mounter.lowers import Meta, forget_released, lazy_lowers, released_lowers
from mounter.mountinfo import Mount, parse_mountinfo, read_mounts

_NAME: Final = "[a-z2-7]{20}"
_END: Final = "(?=/fs(?:[:,]|$)|[:,]|$)"
_ABSOLUTE = re.compile(rf"(?P<root>/[^:,=]*)/(?:layers|lazy|meta|gate)/(?P<name>{_NAME}){_END}")
_SHORTENED = re.compile(rf"(?<=[=:])(?P<name>{_NAME}){_END}")
_LAZY_LOWER = re.compile(rf"/lazy/{_NAME}$")
_BOUND: Final = rf"/layers/(?P<name>{_NAME})(?:/fs(?:/|$))"


@dataclass(frozen=True, slots=True)
class Root:
    """ROOT by its paths, and where it is: the file system, and the path within that."""

    paths: frozenset[str]
    device: tuple[int, int]
    inner: str

    @classmethod
    def at(cls, path: str, mounts: Iterable[Mount]) -> Root:
        """ROOT at `path`, given the mounts of our namespace."""
        real = os.path.realpath(path)
        around = [mount for mount in mounts if (real + "/").startswith(mount.target.rstrip("/") + "/")]
        # The innermost; of two on one directory the later covers the earlier.
        place = max(enumerate(around), key=lambda item: (len(item[1].target), item[0]))[1]
        inner = place.root.rstrip("/") + real.removeprefix(place.target.rstrip("/"))
        return cls(frozenset({os.path.abspath(path), real}), place.device, inner)


def names_in_mounts(mounts: Iterable[Mount], root: Root) -> dict[str, set[str]]:
    """The layer keys and ids of lazy lowers that mounts name, and the targets of these mounts.

    Names that only look like one may be among them. Pure.
    """
    named: dict[str, set[str]] = {}
    for mount in mounts:
        for name in _names(mount, root):
            named.setdefault(name, set()).add(mount.target)
    return named


def named_by_mounts(root: str) -> dict[str, set[str]]:
    """`names_in_mounts` of all mounts of this machine now. Raises OSError."""
    return names_in_mounts(_all_mounts(), Root.at(root, read_mounts()))


def layers_in_mounts(root: str, layers: Collection[str]) -> dict[str, set[str]]:
    """Those of `layers` that a mount needs, and the targets of these mounts. Raises OSError."""
    if not layers:
        return {}
    needed: dict[str, set[str]] = {}
    lowers = {lower.id: lower.parts for lower in (*lazy_lowers(root), *released_lowers(root))}
    for name, targets in named_by_mounts(root).items():
        parts = lowers.get(name, [Meta(name)])
        for layer in (part.layer for part in parts if isinstance(part, Meta)):
            if layer in layers:
                needed.setdefault(layer, set()).update(targets)
    return needed


def forget_released_lowers(root: str) -> None:
    """Forget the released lazy lowers that no mount stands on any more. Raises OSError."""
    forget_released(root, lambda: named_by_mounts(root).keys())


def _names(mount: Mount, root: Root) -> Iterator[str]:
    """Layer keys and ids of lazy lowers, or what looks like one, that a mount names."""
    if mount.fstype == "overlay":
        if _LAZY_LOWER.search(mount.target):
            return
        options = ",".join(mount.super_options)
        yield from (found["name"] for found in _ABSOLUTE.finditer(options) if found["root"] in root.paths)
        yield from (found["name"] for found in _SHORTENED.finditer(options))
    elif mount.device == root.device and (bound := re.match(re.escape(root.inner) + _BOUND, mount.root)):
        yield bound["name"]


def _all_mounts() -> Iterator[Mount]:
    """The mounts of every namespace that has a process, of the kinds that could need a layer."""
    seen: set[int] = set()
    for name in os.listdir("/proc"):
        # A process may end at any time; a kernel thread has no namespace to look into.
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if not name.isdigit() or (namespace := os.stat(f"/proc/{name}/ns/mnt").st_ino) in seen:
                continue
            with open(f"/proc/{name}/mountinfo", "rb") as file:
                lines = [
                    line for line in file.read().splitlines() if b" overlay " in line or b"/layers/" in line
                ]
            seen.add(namespace)
            yield from parse_mountinfo(b"\n".join(lines))
