"""What crashes leave behind: found without changing anything, removed under the lock that its maker holds.

    layers/.dead-*                       a layer set aside                not deleted yet
    layers/.new-*                        a layer, made by half            nobody makes one now
    layers/<layer>/repair                files fetched to repair it       nobody works on the layer
    layers/<layer>/*.tmp, lazy/*.json.*  half-written files               their processes are gone
    forks/pymp-*                         the socket of a fork server      its process is gone
    .probe-*                             what a probe of the host made    no probe runs
    late/*                               links handed over                no mounter runs
    gate, connections                    mounts of a dead mounter         likewise
    mounter.sock                         its socket                       likewise
    mounts/*.json                        a manual mount's state           it is not mounted, no keeper runs
    mounts/<id>.*                        what belongs to one              it has no state, nobody writes one

and, while no `serve` runs, which looks after them itself:

    lazy/<id>                            a lazy lower                     no process uses, no mount names it
    meta/<layer>                         META                             no process uses it, nor a lazy lower
    snapshots/*                          a directory                      the database has no row of it

Blocking.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fetcher.store import KEY_LENGTH, LayerStore
from mounter.control import socket_path
from mounter.daemon import ALIVE
from mounter.errors import MounterError
from mounter.fork_socket import left_fork_sockets, remove_left_fork_sockets
from mounter.lock import is_locked, locked
from mounter.lowers import Meta, lazy_lowers
from mounter.mountinfo import is_mount_point, read_mounts
from mounter.probe import left_probes, remove_left_probes
from mounter.syscalls import detach
from mounter.uses import release_unused_lower, release_unused_meta
from snapshotter.cache.mounted import named_by_mounts
from snapshotter.cache.removal import delete_tree, not_worked_on
from snapshotter.cache.values import Leftover, Problem
from snapshotter.manual.release import forget_gone
from snapshotter.manual.state import ManualMounts

_TEMPORARY = re.compile(r".+\.(?P<pid>\d+)\.tmp")
_HALF_RECORD = re.compile(r"[a-z2-7]{20}\.json\.[0-9a-f]{8}")

DEAD_LAYER: Final = "layer, removed by half"
NEW_LAYER: Final = "layer, made by half"
REPAIR: Final = "repair, begun"
TEMPORARY: Final = "file, written by half"
FORKS: Final = "socket of a process that was killed"
PROBE: Final = "probe of this host, begun"
LATE: Final = "links handed over"
GATE: Final = "dead gate"
MOUNTER: Final = "socket of a mounter that was killed"
LAZY: Final = "lazy lower"
ROOM: Final = "mounts made for a lazy lower"
META: Final = "META tree"
SNAPSHOT: Final = "snapshot's directory"
MANUAL: Final = "manual mount that is gone"
MANUAL_FILES: Final = "files of a manual mount that is gone"


def find_leftovers(store: LayerStore, snapshots: Collection[int] | None) -> list[Leftover]:
    """What is left; `snapshots` are the ids in the database, None while `serve` runs. Raises OSError."""
    root = store.root
    found = [*_in_layers(store), *_half_records(root), *_of_the_mounter(root), *_manual_mounts(root)]
    found += [Leftover(FORKS, path) for path in left_fork_sockets(root)]
    found += [Leftover(PROBE, path) for path in left_probes(root)]
    if snapshots is not None:
        found += [*_lower_mounts(root), *_snapshot_directories(root, snapshots)]
    return found


def remove_leftover(store: LayerStore, leftover: Leftover) -> Problem | None:
    """Remove what `find_leftovers` found, unless somebody needs it by now."""
    try:
        reason = _REMOVERS[leftover.kind](store, leftover.path)
    except (OSError, MounterError) as error:
        reason = str(error)
    return None if reason is None else Problem(leftover.path, reason)


def _in_layers(store: LayerStore) -> Iterator[Leftover]:
    making = is_locked(f"{store.layers_directory}.lock")
    for name in _names(store.layers_directory):
        path = os.path.join(store.layers_directory, name)
        if name.startswith(".dead-"):
            yield Leftover(DEAD_LAYER, path)
        elif name.startswith(".new-"):
            if not making:
                yield Leftover(NEW_LAYER, path)
        elif len(name) == KEY_LENGTH:
            for inner in _names(path):
                if inner == "repair" and not is_locked(os.path.join(path, "lock")):
                    yield Leftover(REPAIR, os.path.join(path, inner))
                elif (written := _TEMPORARY.fullmatch(inner)) and not _lives(written["pid"]):
                    yield Leftover(TEMPORARY, os.path.join(path, inner))


def _half_records(root: str) -> Iterator[Leftover]:
    directory = os.path.join(root, "lazy")
    if not is_locked(os.path.join(directory, "lock")):
        for name in _names(directory):
            if _HALF_RECORD.fullmatch(name):
                yield Leftover(TEMPORARY, os.path.join(directory, name))
            elif name.endswith(".room"):
                yield Leftover(ROOM, os.path.join(directory, name))


def _of_the_mounter(root: str) -> Iterator[Leftover]:
    if mounter_runs(root):
        return
    late, real = os.path.join(root, "late"), os.path.realpath(root)
    yield from (Leftover(LATE, os.path.join(late, name)) for name in _names(late))
    for path in (os.path.join(real, "gate"), os.path.join(real, "connections")):
        if _is_fuse(path):
            yield Leftover(GATE, path)
    if os.path.exists(socket := socket_path(root)):
        yield Leftover(MOUNTER, socket)


def _manual_mounts(root: str) -> Iterator[Leftover]:
    mounts = ManualMounts(root)
    gone = [state.id for state in mounts.all() if not state.alive()]
    yield from (Leftover(MANUAL, os.path.join(mounts.directory, f"{name}.json")) for name in gone)
    yield from (Leftover(MANUAL_FILES, os.path.join(mounts.directory, name)) for name in mounts.strays())


def _lower_mounts(root: str) -> Iterator[Leftover]:
    named = named_by_mounts(root)
    kept: set[str] = set()
    for lower in lazy_lowers(root):
        if lower.id in named or is_locked(os.path.join(root, "uses", lower.id)):
            kept.update(part.layer for part in lower.parts if isinstance(part, Meta))
        else:
            yield Leftover(LAZY, lower.path)
    directory = os.path.join(root, "meta")
    for name in _names(directory):
        path = os.path.join(directory, name)
        if os.path.isdir(path) and name not in kept and not is_locked(os.path.join(root, "uses", name)):
            yield Leftover(META, path)


def _snapshot_directories(root: str, snapshots: Collection[int]) -> Iterator[Leftover]:
    directory = os.path.join(root, "snapshots")
    live = {str(snapshot) for snapshot in snapshots}
    for name in _names(directory):
        if name not in live:
            yield Leftover(SNAPSHOT, os.path.join(directory, name))


def _remove_tree(_store: LayerStore, path: str) -> str | None:
    return delete_tree(path)


def _remove_new(store: LayerStore, path: str) -> str | None:
    with store.nothing_is_made():
        return delete_tree(path)


def _remove_repair(store: LayerStore, path: str) -> str | None:
    with not_worked_on(store, os.path.basename(os.path.dirname(path))) as free:
        return delete_tree(path) if free else "the layer is worked on by now"


def _remove_file(_store: LayerStore, path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _remove_room(store: LayerStore, path: str) -> None:
    with locked(os.path.join(store.root, "lazy", "lock")):
        if is_mount_point(path):
            detach(path)
        with suppress(FileNotFoundError):
            os.rmdir(path)


def _remove_lower(store: LayerStore, path: str) -> str | None:
    return None if release_unused_lower(store.root, os.path.basename(path)) else "it is in use by now"


def _remove_meta(store: LayerStore, path: str) -> str | None:
    return None if release_unused_meta(store.root, os.path.basename(path)) else "it is in use by now"


def _remove_probe(store: LayerStore, _path: str) -> None:
    remove_left_probes(store.root)


def _remove_forks(store: LayerStore, _path: str) -> None:
    remove_left_fork_sockets(store.root)


@contextmanager
def _without_mounter(store: LayerStore) -> Iterator[str | None]:
    """No mounter is started in the block; why one runs already, None if none does."""
    with locked(os.path.join(store.root, "mounter.start")):
        yield "a mounter runs by now" if mounter_runs(store.root) else None


def _remove_late(store: LayerStore, path: str) -> str | None:
    with _without_mounter(store) as reason:
        return reason or delete_tree(path)


def _remove_gate(store: LayerStore, path: str) -> str | None:
    with _without_mounter(store) as reason:
        while reason is None and _is_fuse(path):
            detach(path)
        if reason is None and os.path.basename(path) == "connections":
            os.rmdir(path)
        return reason


def _remove_mounter(store: LayerStore, path: str) -> str | None:
    with _without_mounter(store) as reason:
        if reason is None:
            _remove_file(store, path)
        return reason


def _remove_manual(store: LayerStore, _path: str) -> None:
    forget_gone(ManualMounts(store.root))


def _remove_snapshot(_store: LayerStore, path: str) -> str | None:
    inside = [mount.target for mount in read_mounts() if mount.target.startswith(path + "/")]
    return f"something is mounted on {inside[0]}" if inside else delete_tree(path)


_REMOVERS: Final[dict[str, Callable[[LayerStore, str], str | None]]] = {
    DEAD_LAYER: _remove_tree,
    NEW_LAYER: _remove_new,
    REPAIR: _remove_repair,
    TEMPORARY: _remove_file,
    FORKS: _remove_forks,
    PROBE: _remove_probe,
    LATE: _remove_late,
    GATE: _remove_gate,
    MOUNTER: _remove_mounter,
    LAZY: _remove_lower,
    ROOM: _remove_room,
    META: _remove_meta,
    SNAPSHOT: _remove_snapshot,
    MANUAL: _remove_manual,
    MANUAL_FILES: _remove_manual,
}


def mounter_runs(root: str) -> bool:
    """Whether a mounter of `root` lives: the one in charge, or a retired one that mounts still use."""
    return is_locked(os.path.join(root, ALIVE))


def _lives(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _is_fuse(path: str) -> bool:
    return any(mount.target == path and mount.fstype.startswith("fuse") for mount in read_mounts())


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
