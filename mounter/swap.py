"""Mounting a directory tree by hand, and exchanging it for another one in place.

The exchange, from Linux 6.5 on: the new mount is made detached, put beneath the old one (which nobody sees
yet), and the old one is detached. There is no moment at which the mountpoint is empty or covered twice;
whoever comes by path from then on is in the new mount, and who has files or directories open in the old one
keeps them, as it lives until its last user is gone. Where a kernel cannot put a mount beneath another, or
not with separate lower directories (6.8), the new one is put over the old one, which stays below until both
are unmounted.

Two overlays share an upper directory for a moment, or for as long as the old one is in use. The kernel
lets them with index=off. What is written through one is there in the other, as both write to the same
files; a name that one has looked up before may appear to it later than to the other.

Blocking.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mounter.errors import mount_failures
from mounter.mountinfo import Mount, below, read_mounts
from mounter.syscalls import (
    NoSeparateLowers,
    attach,
    attach_beneath,
    detach,
    detached_bind,
    detached_overlay,
    mount_id,
    mount_overlay_by_string,
)


@dataclass(frozen=True, slots=True)
class Bind:
    """The directory `path`, read-only."""

    path: str


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay of `lower`, the uppermost first; writable if `options` name an upper directory."""

    lower: Sequence[str]
    options: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def read_only(self) -> bool:
        """Whether it has no upper directory."""
        return "upperdir" not in self.options


View = Bind | Overlay
"""What a mountpoint shows. Read-only ones are nosuid and nodev: they are there to be looked at."""

KeepIds = Callable[[Sequence[int]], None]
"""Told the ids of a mountpoint's mounts, the uppermost first, before the first of them can be seen."""


def mount_view(view: View, target: str, keep: KeepIds) -> None:
    """Mount a view on the directory `target`. Raises MountFailed; nothing is mounted then."""
    with mount_failures(f"cannot mount on {target}", target):
        try:
            with _detached(view) as fd:
                keep([mount_id(fd)])
                attach(fd, target)
        except NoSeparateLowers:
            _mount_by_string(view, target)
            keep([topmost(target).id])


def swap_view(view: View, target: str, keep: KeepIds, *, beneath: bool = True) -> bool:
    """Put a view in the place of the uppermost mount on `target`; False if it had to go over it.

    `beneath=False` does not try anything else. Raises MountFailed; all is as it was then.
    """
    old = topmost(target).id
    with mount_failures(f"cannot swap what is mounted on {target}", target):
        try:
            with _detached(view) as fd:
                new = mount_id(fd)
                if beneath:
                    keep([old, new])
                    try:
                        attach_beneath(fd, target)
                    except OSError as error:
                        if error.errno != errno.EINVAL:
                            keep([old])
                            raise
                    else:
                        detach(target)
                        keep([new])
                        return True
                keep([new, old])
                attach(fd, target)
        except NoSeparateLowers:
            _mount_by_string(view, target)
            keep([topmost(target).id, old])
    return False


def topmost(target: str) -> Mount:
    """The uppermost mount on `target`, an absolute real path. Raises OSError if there is none."""
    here = mounts_on(target)
    covered = {mount.parent for mount in here}
    for mount in here:
        if mount.id not in covered:
            return mount
    raise OSError(errno.EINVAL, "nothing is mounted there", target)


def mounts_on(target: str) -> list[Mount]:
    """The mounts on `target` itself."""
    return [mount for mount in read_mounts() if mount.target == target]


def mounted_inside(target: str) -> list[str]:
    """The mountpoints below `target`, in the order of mountinfo."""
    return [mount.target for mount in below(read_mounts(), target) if mount.target != target]


@contextmanager
def _detached(view: View) -> Iterator[int]:
    if isinstance(view, Bind):
        with detached_bind(view.path) as fd:
            yield fd
    else:
        with detached_overlay(lower=view.lower, options=view.options, read_only=view.read_only) as fd:
            yield fd


def _mount_by_string(view: View, target: str) -> None:
    assert isinstance(view, Overlay), "a bind mount has no lower directories"
    mount_overlay_by_string(target, lower=view.lower, data=(), options=view.options, read_only=view.read_only)


__all__ = [
    "Bind",
    "KeepIds",
    "Overlay",
    "View",
    "mount_view",
    "mounted_inside",
    "mounts_on",
    "swap_view",
    "topmost",
]
