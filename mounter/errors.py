"""What can go wrong between a layer's tree and a mount.

    MounterError
    ├── MountFailed             the kernel refused a mount; .errno, .target
    ├── UnsupportedAttribute    META's file system cannot carry an xattr of the layer; .path, .attribute
    ├── TooSlow                 a file did not come within the configured wait
    ├── AlreadyRunning          another mounter holds the root
    ├── MounterUnreachable      no mounter answers on the root's control socket
    ├── MounterRefused          the mounter did not do what it was asked, or could not be started
    └── SteeringAttribute       an ordinary directory would lead overlayfs to other data; .path

`mounter.syscalls` raises OSError alone; `mounter.meta` and `mounter.lowers`
turn what the kernel says about a mount into one of these.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class MounterError(Exception):
    """Base of everything that `mounter` raises by itself."""


class MountFailed(MounterError):
    """The kernel refused to mount on `target`; `errno` is its number, the message has its own words."""

    def __init__(self, message: str, *, errno: int, target: str) -> None:
        super().__init__(message)
        self.errno = errno
        self.target = target


class UnsupportedAttribute(MounterError):
    """META cannot show the layer whole: `attribute` cannot be set on `path` (of the layer) here."""

    def __init__(self, message: str, *, path: str, attribute: str) -> None:
        super().__init__(message)
        self.path = path
        self.attribute = attribute


class SteeringAttribute(MounterError):
    """`path`, in an ordinary directory, would be read from another place once metacopy is on."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(message)
        self.path = path


@contextmanager
def mount_failures(what: str, target: str) -> Iterator[None]:
    """Turn what the system refuses in the block into MountFailed; `what` was being done."""
    try:
        yield
    except OSError as error:
        raise MountFailed(f"{what}: {error}", errno=error.errno or errno.EIO, target=target) from error


class TooSlow(MounterError):
    """A file, or the next bytes of it, did not come within the configured wait."""


class AlreadyRunning(MounterError):
    """Another mounter holds the root's lock."""


class MounterUnreachable(MounterError):
    """No mounter answers on the root's control socket."""


class MounterRefused(MounterError):
    """The mounter did not do what it was asked, or could not be started; the message has its reason."""
