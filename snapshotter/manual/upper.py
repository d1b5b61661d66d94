"""The upper directory of a writable mount, which the user names, and the work directories beside it.

    <parent>/<name>                             what --rw names: everything that is written
    <parent>/.<name>.layergate-work/lazy        the lazy overlay's work directory
                                   /native      the native one's

overlayfs wants a work directory of its own for each overlay, on the file system of the upper one. Blocking.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress

from mounter.mountinfo import Mount, read_mounts
from snapshotter.manual.errors import MountedAlready, MountpointMissing


def work_path(upper: str) -> str:
    """Where the work directories of the upper directory `upper` are; both are absolute."""
    parent, name = os.path.split(upper)
    return os.path.join(parent, f".{name}.layergate-work")


def check_upper(upper: str, mountpoint: str) -> None:
    """See that `upper`, absolute and real, can be one. Raises MountpointMissing, MountedAlready."""
    if not os.path.isdir(upper if os.path.lexists(upper) else os.path.dirname(upper)):
        raise MountpointMissing(
            f"{upper} cannot be an upper directory: it is none, nor does its parent exist"
        )
    for one, other in ((upper, mountpoint), (mountpoint, upper)):
        if os.path.commonpath([one, other]) == one:
            raise MountedAlready(
                f"the upper directory {upper} and the mountpoint {mountpoint} are in each other"
            )
    used = user_of(read_mounts(), upper)
    if used is not None:
        raise MountedAlready(f"{upper} is the upper directory of what is mounted on {used}")


def user_of(mounts: Iterable[Mount], upper: str) -> str | None:
    """Where an overlay with that upper directory is mounted; pure."""
    for mount in mounts:
        if mount.fstype == "overlay" and f"upperdir={upper}" in mount.super_options:
            return mount.target
    return None


def make_upper(upper: str) -> None:
    """Make the upper directory if it is absent, and empty work directories. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(upper, 0o755)
    remove_work(upper)
    work = work_path(upper)
    for path in (work, f"{work}/lazy", f"{work}/native"):
        os.mkdir(path, 0o700)


def dress_upper(upper: str, lower: str) -> None:
    """Give an upper directory that we made the owner and mode of the tree's root, which it will hide."""
    status = os.stat(lower)
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, stat.S_IMODE(status.st_mode))


def remove_work(upper: str) -> None:
    """Remove the work directories. Raises OSError."""
    with suppress(FileNotFoundError):
        shutil.rmtree(work_path(upper))
