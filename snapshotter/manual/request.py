"""What a user wants of `layergate mount`, and taking the mountpoint for it. Blocking."""

from __future__ import annotations

import os
import time

import msgspec

from fetcher.store import boot_id
from mounter.swap import mounts_on
from snapshotter.manual.errors import MountedAlready, MountpointMissing, MountpointNotEmpty
from snapshotter.manual.state import ManualMounts, MountState, mount_namespace
from snapshotter.manual.upper import check_upper
from snapshotter.processes import Process


class MountRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One wish. Paths are absolute and real, `source` is `absolute_source`'s; `id` is the mount's to be."""

    id: str
    root: str
    source: str
    mountpoint: str
    layer: str | None = None
    rw: str | None = None
    platform: str | None = None
    plain_http: bool = False
    config: str | None = None
    """The configuration file, where it is not the usual one."""


def claim(mounts: ManualMounts, request: MountRequest) -> MountState:
    """Register the wish, with this process as its keeper.

    Raises MountpointMissing, MountpointNotEmpty, MountedAlready.
    """
    with mounts.lock():
        check_mountpoint(request.mountpoint)
        for other in mounts.all():
            if other.here and other.mountpoint == request.mountpoint:
                raise MountedAlready(f"another `layergate mount` is at work on {request.mountpoint}")
            if request.rw is not None and other.rw == request.rw:
                raise MountedAlready(f"{request.rw} is the upper directory of {other.mountpoint}")
        if request.rw is not None:
            check_upper(request.rw, request.mountpoint)
        state = MountState(
            id=request.id,
            mountpoint=request.mountpoint,
            source=request.source,
            alone=request.layer is not None,
            rw=request.rw,
            made_rw=request.rw is not None and not os.path.exists(request.rw),
            keeper=Process.current(),
            namespace=mount_namespace(),
            boot=boot_id(),
            since=time.time(),
        )
        mounts.write(state)
    return state


def check_mountpoint(path: str) -> None:
    """See that `path`, absolute and real, can be mounted on.

    Raises MountpointMissing, MountpointNotEmpty, MountedAlready.
    """
    if mounts_on(path):
        raise MountedAlready(f"something is mounted on {path} already")
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        raise MountpointMissing(f"there is no directory {path}") from None
    except NotADirectoryError:
        raise MountpointMissing(f"{path} is no directory") from None
    if names:
        raise MountpointNotEmpty(f"{path} is not empty: it has {names[0]!r}, which would be hidden")
