"""What can go wrong with a mount by hand.

SnapshotterError
└── ManualMountError
    ├── NotPermitted            mounting needs root
    ├── MountpointMissing       it does not exist, or is no directory
    ├── MountpointNotEmpty      it has something in it
    ├── MountedAlready          something is mounted there, or the upper directory is in use
    ├── NoSuchLayer             the image has no layer of that number or digest
    ├── NotMounted              no mount of ours is there
    ├── MountpointBusy          somebody uses what is mounted there
    ├── LazyImpossible          this host has no FUSE, or nothing else to be lazy with
    └── KeeperFailed            the keeper said why it could not; .code is the exit code for that
"""

from __future__ import annotations

from snapshotter.errors import SnapshotterError


class ManualMountError(SnapshotterError):
    """Base of what goes wrong with a mount by hand alone."""


class NotPermitted(ManualMountError):
    """Mounting needs root."""


class MountpointMissing(ManualMountError):
    """The mountpoint, or the directory of --rw, is not there or is no directory."""


class MountpointNotEmpty(ManualMountError):
    """What is in the mountpoint would be hidden."""


class MountedAlready(ManualMountError):
    """Something is mounted on the mountpoint, or the upper directory belongs to another overlay."""


class NoSuchLayer(ManualMountError):
    """The image has no layer of that number or digest."""


class NotMounted(ManualMountError):
    """No manual mount is on that directory."""


class MountpointBusy(ManualMountError):
    """Open files or working directories hold the mount."""


class LazyImpossible(ManualMountError):
    """Layers that are not here yet cannot be mounted on this host."""


class KeeperFailed(ManualMountError):
    """What made the keeper fail, in its words; `code` is the exit code of its error."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code
