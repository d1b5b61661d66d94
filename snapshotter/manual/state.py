"""ROOT/mounts: the mounts made by hand, one small file each, so that every process can tell.

    ROOT/mounts/<id>.json       MountState
                <id>.json.*     one being written
                <id>.log        what its keeper logged; flock: held by the keeper and who starts it
                <id>.below/     what lies below the layers of a merged mount, where something has to
                <id>.above/     what lies above them
                lock            flock: held while a mount of ours is made, swapped or taken away

A state is written before what it tells of, by temporary name and rename. What is true is in the kernel: a
mount is there if mountinfo has one of the ids, a keeper runs if its process id has the start time. Blocking.
"""

from __future__ import annotations

import enum
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from fetcher.store import boot_id
from mounter.lock import is_locked, locked
from mounter.mountinfo import read_mounts
from mounter.swap import mounts_on
from snapshotter.processes import Process


class MountKind(enum.Enum):
    """How far a mount is, as its keeper wrote it."""

    STARTING = "starting"
    """Nothing is mounted yet."""
    LAZY = "lazy"
    NATIVE = "native"
    """Complete; it needs no process."""


class MountedLayer(msgspec.Struct, frozen=True):
    """A layer by key and by its blob's digest."""

    layer: str
    digest: str


class MountState(msgspec.Struct, frozen=True, kw_only=True):
    """One mount. `layers` are those of the image from the bottom up; times in seconds since 1970."""

    id: str
    mountpoint: str
    source: str
    alone: bool
    """One layer as it is, not merged."""
    rw: str | None
    made_rw: bool
    """Whether the upper directory was made for this mount."""
    keeper: Process | None
    namespace: str
    """The mount namespace, as /proc/self/ns/mnt names it."""
    boot: str
    since: float
    kind: MountKind = MountKind.STARTING
    layers: list[MountedLayer] = []
    mounts: list[int] = []
    """Ids of our mounts on the mountpoint, the uppermost first; two for the moment of a swap."""
    waiting: str | None = None
    """A mountpoint inside, because of which a complete mount has not been swapped yet."""
    discard: bool = False
    """Whether its layers are to go with it: the cache was cleaned when its keeper had been killed."""

    @property
    def here(self) -> bool:
        """Whether what it tells of could be in this mount namespace."""
        return self.namespace == mount_namespace() and self.boot == boot_id()

    def mounted(self) -> list[int]:
        """Those of its mounts that are there, in the state's order; for a state that is `here`."""
        present = {mount.id for mount in mounts_on(self.mountpoint)}
        return [mount for mount in self.mounts if mount in present]

    def alive(self) -> bool:
        """Whether there is a mount, or somebody about to make one; in another namespace, there may be one."""
        if self.boot != boot_id():
            return False
        if self.kept():
            return True
        return bool(self.mounted()) if self.here else _is_entered(self.namespace)

    def orphaned(self) -> bool:
        """Whether its keeper was killed and left a mount."""
        return self.keeper is not None and not self.kept() and self.alive()

    def kept(self) -> bool:
        """Whether its keeper runs."""
        return self.keeper is not None and self.keeper.runs()


_STATES: Final = msgspec.json.Decoder(MountState)


class ManualMounts:
    """The states below one root."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.directory = os.path.join(self.root, "mounts")

    def create_directories(self) -> None:
        """Make ROOT and ROOT/mounts."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Exclude the other processes that make, swap or take away mounts."""
        with locked(os.path.join(self.directory, "lock")):
            yield

    def all(self) -> list[MountState]:
        """Every state by mountpoint, those of a crash or an earlier boot too."""
        found = []
        with suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                if name.endswith(".json"):
                    # Removed meanwhile, or cut short by a power loss.
                    with suppress(FileNotFoundError, msgspec.DecodeError):
                        found.append(self._read(name))
        return sorted(found, key=lambda state: (state.mountpoint, state.since))

    def on(self, mountpoint: str) -> list[MountState]:
        """The states of one mountpoint, an absolute real path."""
        return [state for state in self.all() if state.mountpoint == mountpoint]

    def log(self, name: str) -> str:
        """Where the keeper of the mount with this id logs."""
        return os.path.join(self.directory, f"{name}.log")

    def below(self, name: str) -> str:
        """Where the directory is that lies below the layers of the mount with this id."""
        return os.path.join(self.directory, f"{name}.below")

    def above(self, name: str) -> str:
        """Where the one is that lies above them."""
        return os.path.join(self.directory, f"{name}.above")

    def write(self, state: MountState) -> None:
        """Keep a state."""
        path = os.path.join(self.directory, f"{state.id}.json")
        temporary = f"{path}.{secrets.token_hex(4)}"
        with open(temporary, "wb") as file:
            file.write(msgspec.json.encode(state))
        os.rename(temporary, path)

    def forget(self, name: str) -> None:
        """Remove all that is here of the mount with this id, which is unmounted; its state last."""
        state = f"{name}.json"
        found = [one for one in os.listdir(self.directory) if one.startswith(f"{name}.") and one != state]
        for path in (os.path.join(self.directory, one) for one in (*found, state)):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(path)

    def strays(self) -> list[str]:
        """The ids of which something is here, but no state, nor a process that is about to write one.

        Only while the lock is held are all of them left by a crash.
        """
        try:
            names = {name.partition(".")[0] for name in os.listdir(self.directory) if "." in name}
        except FileNotFoundError:
            return []
        names -= {state.id for state in self.all()}
        return sorted(name for name in names if not is_locked(self.log(name)))

    def _read(self, name: str) -> MountState:
        with open(os.path.join(self.directory, name), "rb") as file:
            return _STATES.decode(file.read())


def mount_namespace() -> str:
    """Our mount namespace, as the kernel names it."""
    return os.readlink("/proc/self/ns/mnt")


def _is_entered(namespace: str) -> bool:
    """Whether a process is in a mount namespace, or it has been mounted to stay without one."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.readlink(f"/proc/{name}/ns/mnt") == namespace:
                    return True
    return any(mount.fstype == "nsfs" and mount.root == namespace for mount in read_mounts())
