"""Taking a manual mount away, with all that belongs to it; also after a crash of everything. Blocking."""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress
from typing import Final

import msgspec

from fetcher.logs import get_logger
from mounter.errors import mount_failures
from mounter.swap import topmost
from mounter.syscalls import detach, unmount
from mounter.uses import forget_unused, release_unused
from snapshotter.cache.mounted import forget_released_lowers
from snapshotter.gates import retire_unused
from snapshotter.manual.errors import MountpointBusy, NotMounted
from snapshotter.manual.state import ManualMounts, MountState
from snapshotter.manual.upper import remove_work
from snapshotter.processes import Process

log = get_logger("layergate.manual")

_END_SECONDS: Final = 20.0
"""How long a keeper may take to let go."""


def unmount_manual(root: str, mountpoint: str, *, lazy: bool) -> list[str]:
    """Unmount what a manual mount has on `mountpoint`, end its keeper, and let go of all that it needs.

    `lazy` takes it out of sight at once though it is in use. Gives the layers that are to go with it, for the
    caller to remove from the cache (`discard_with_orphans`). Raises NotMounted, MountpointBusy, MountFailed,
    OSError.
    """
    target = os.path.realpath(mountpoint)
    mounts = ManualMounts(root)
    states = mounts.on(target)
    if not states:
        raise NotMounted(f"{target} is not one of the mounts that `layergate mounts` lists")
    for state in states:
        if state.alive() and not state.here:
            raise NotMounted(f"{target} is mounted in another mount namespace than this command's")
        _unmount(mounts, state, lazy=lazy, unwanted=False)
    release(mounts.root)
    return [one.layer for state in states if state.discard for one in state.layers]


def discard_with_orphans(mounts: ManualMounts) -> None:
    """Have the layers of each mount whose keeper was killed go with it when it is unmounted.

    Until then they stay, as what is here of them can be read. Raises OSError.
    """
    if any(map(MountState.orphaned, mounts.all())):
        with mounts.lock():
            for state in mounts.all():
                if state.orphaned() and not state.discard:
                    mounts.write(msgspec.structs.replace(state, discard=True))


def take_away(root: str, name: str) -> None:
    """Undo the mount with this id, whatever is left of it and of its keeper.

    Raises MountpointBusy, MountFailed, OSError.
    """
    mounts = ManualMounts(root)
    for state in mounts.all():
        if state.id == name:
            _unmount(mounts, state, lazy=True, unwanted=True)
            release(mounts.root)


def _unmount(mounts: ManualMounts, state: MountState, *, lazy: bool, unwanted: bool) -> None:
    with mounts.lock():
        unmount_ours(state, lazy=lazy)
    if state.keeper is not None and state.keeper != Process.current():
        end_process(state.keeper)
    remove_files(mounts, state, unwanted=unwanted)


def unmount_ours(state: MountState, *, lazy: bool) -> None:
    """Unmount our mounts on the mountpoint; the caller holds the lock. Raises MountpointBusy, MountFailed."""
    if not state.here:
        return
    target = state.mountpoint
    with mount_failures(f"cannot unmount {target}", target):
        while ours := state.mounted():
            if topmost(target).id not in ours:
                raise MountpointBusy(f"something else is mounted over {target}: unmount that first")
            try:
                if lazy:
                    detach(target)
                else:
                    unmount(target)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise MountpointBusy(
                    f"{target} is in use (`fuser -vm {target}` says by whom); --lazy unmounts it all the same"
                ) from error


def remove_files(mounts: ManualMounts, state: MountState, *, unwanted: bool = False) -> None:
    """Remove the state of an unmounted mount, and its work directories.

    `unwanted`: also the upper directory, if it was made for this mount and nothing was written.
    """
    if state.rw is not None:
        try:
            remove_work(state.rw)
            if unwanted and state.made_rw and not os.listdir(state.rw):
                os.rmdir(state.rw)
        except FileNotFoundError:
            pass  # it was not made yet
        except OSError as error:
            log.warning("not_removed", upper=state.rw, error=str(error))
    mounts.forget(state.id)


def release(root: str) -> None:
    """Release lazy lowers, META and the mounter, as far as nobody uses them. Raises MounterError, OSError."""
    release_unused(root)
    retire_unused(root)
    forget_released_lowers(root)
    forget_unused(root)


def forget_gone(mounts: ManualMounts) -> None:
    """Clean up after mounts that are gone, by a crash, a reboot or somebody else's umount.

    Raises MounterError, OSError.
    """
    gone = [state for state in mounts.all() if not state.alive()]
    for state in gone:
        remove_files(mounts, state)
    if mounts.strays():
        with mounts.lock():
            for name in mounts.strays():
                mounts.forget(name)
    if gone:
        release(mounts.root)


def end_process(process: Process) -> None:
    """SIGTERM, and SIGKILL if that does not help; returns when the process has ended."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not process.runs():
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], _END_SECONDS)[0]:
                return
    finally:
        os.close(fd)
