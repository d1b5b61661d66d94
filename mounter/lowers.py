"""Lazy lowers: one read-only overlay for each chain of layers that is not complete yet.

    lower = META or ordinary directory of each layer, the uppermost first; then room (below)
    data  = ROOT/layers (PLAIN), ROOT/gate (GATE), ROOT/late (LATE), BARRIER, asked in this order

Which parts a lazy lower has is kept in ROOT/lazy/<id>.json, written before it is mounted, so that
any process can tell. Detaching a lazy lower, or a META that it stands on, takes nothing away from the
containers on it: the kernel holds clones of the mounts and frees them with the last user. As these read on
from ROOT/layers, the record of a detached lazy lower is kept, as ROOT/lazy/<id>.released, until somebody
finds that no mount names it any more (`forget_released`). Blocking; callers in several processes exclude
each other by ROOT/lazy/lock.

Room for inode numbers. Each META numbers its inodes for itself, so files of two layers have equal numbers;
to the container both would be the same file (the dynamic loader then takes one library for another).
`xino=on` in the lazy lower puts the number of the file system into the highest bits: w = floor(log2(F)) + 1
bits for F file systems among the lower layers (data-only layers do not count). The container's own overlay
has `xino=on` too and needs the two highest bits of every number zero, or its files and directories have
different st_dev. So the n real file systems have to come first and fit into w - 2 bits: n < 2 ** (w - 2),
which empty file systems at the bottom bring about. They are mounted for the moment of the lazy lower's own
mount only. One file system alone needs none.

The barrier. Whatever error a data-only layer answers, be it EIO or a dead gate's ENOTCONN, overlayfs goes
on to the next one and returns the last one's. From LATE that is ENOENT, and a program would take a file
that could not be fetched for one that does not exist. So a last layer has a symlink to itself in place of
each layer: the open fails with ELOOP. No failure is kept; the next open asks again.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from mounter.errors import mount_failures
from mounter.lock import locked
from mounter.meta import meta_path
from mounter.mountinfo import is_mount_point
from mounter.overlay import LAZY_OPTIONS
from mounter.steering import refuse_steering
from mounter.syscalls import detach, mount_overlay, mount_tmpfs

_LAYERS_LIMIT = 500
"""OVL_MAX_STACK: lower and data-only layers of one overlay."""
_RECORDED, _RELEASED = ".json", ".released"


@dataclass(frozen=True, slots=True)
class Meta:
    """A lazy layer, shown by its META tree; `layer` is its layer key. `ensure_meta` came before."""

    layer: str


@dataclass(frozen=True, slots=True)
class Directory:
    """An ordinary layer: an absolute `path` that does not lie in ROOT/layers, which holds the data."""

    path: str


Part = Meta | Directory


@dataclass(frozen=True, slots=True)
class LazyLower:
    """A lazy lower as its record has it. `generation` names the gate it was mounted over."""

    id: str
    path: str
    parts: tuple[Part, ...]
    generation: str
    mounted: bool


class _Record(msgspec.Struct, frozen=True):
    """ROOT/lazy/<id>.json: each part is {"layer": key} or {"path": directory}."""

    generation: str
    parts: list[dict[str, str]]


_RECORDS: Final = msgspec.json.Decoder(_Record)


def lazy_id(parts: Sequence[Part], generation: str) -> str:
    """The name of the lazy lower of these parts over this gate: 20 lower-case base32 characters."""
    digest = hashlib.sha256(msgspec.json.encode(_record(parts, generation))).digest()
    return base64.b32encode(digest)[:20].decode().lower()


def lazy_path(root: str, lazy: str) -> str:
    """The mount point of a lazy lower: what a container's lowerdir names."""
    return os.path.join(root, "lazy", lazy)


def mount_lazy_lower(root: str, parts: Sequence[Part], generation: str) -> str:
    """Mount the lazy lower of `parts`, the uppermost first, if it is not there yet, and give its path.

    ROOT/layers, ROOT/gate and ROOT/late have to be there, and GATE mounted: nothing can be mounted over
    a dead gate, and over none at all no missing file would ever be fetched. Raises ValueError without
    parts, MountFailed, and SteeringAttribute if an ordinary directory could read other images' data.
    """
    if not parts:
        raise ValueError("a lazy lower needs at least one layer")
    lazy = lazy_id(parts, generation)
    target = lazy_path(root, lazy)
    with mount_failures(f"cannot mount the lazy lower {lazy}", target):
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with locked(_lock(root)):
            if not is_mount_point(target):
                for part in parts:
                    if isinstance(part, Directory):
                        refuse_steering(part.path)
                os.makedirs(target, mode=0o700, exist_ok=True)
                _write(f"{target}{_RECORDED}", msgspec.json.encode(_record(parts, generation)))
                _mount(root, target, parts)
    return target


def release_lazy_lower(root: str, lazy: str) -> None:
    """Take a lazy lower away; does nothing if it is not there. Containers on it go on working.

    Raises MountFailed.
    """
    target = lazy_path(root, lazy)
    if not os.path.isdir(os.path.dirname(target)):
        return
    with mount_failures(f"cannot release the lazy lower {lazy}", target), locked(_lock(root)):
        if is_mount_point(target):
            detach(target)
        with suppress(FileNotFoundError):
            os.rmdir(target)
        with suppress(FileNotFoundError):
            os.rename(f"{target}{_RECORDED}", f"{target}{_RELEASED}")


def lazy_lowers(root: str) -> list[LazyLower]:
    """All recorded lazy lowers by id, those that a crash or a reboot left unmounted too."""
    return list(_recorded(root, _RECORDED))


def released_lowers(root: str) -> list[LazyLower]:
    """The lazy lowers that were released, and that mounts may stand on still.

    To miss none that is being released, ask for `lazy_lowers` first.
    """
    return list(_recorded(root, _RELEASED))


def forget_released(root: str, named: Callable[[], Collection[str]]) -> None:
    """Forget the released lazy lowers whose ids `named` does not give: those that no mount names.

    Nothing is mounted or released meanwhile. Raises OSError.
    """
    if any(_recorded(root, _RELEASED)):
        with locked(_lock(root)):
            kept = named()
            for lower in _recorded(root, _RELEASED):
                if lower.id not in kept:
                    os.unlink(f"{lower.path}{_RELEASED}")


def _recorded(root: str, suffix: str) -> Iterator[LazyLower]:
    try:
        names = sorted(os.listdir(os.path.join(root, "lazy")))
    except FileNotFoundError:
        return
    for name in names:
        if name.endswith(suffix):
            # Released meanwhile; cut short by a power loss.
            with suppress(FileNotFoundError, msgspec.DecodeError):
                yield _read(root, name.removesuffix(suffix), suffix)


def needed_room(file_systems: int) -> int:
    """How many empty file systems make the inode numbers of `file_systems` others fit (module's text)."""
    if file_systems < 2:
        return 0
    return (2 << file_systems.bit_length()) - file_systems


def _mount(root: str, target: str, parts: Sequence[Part]) -> None:
    """Without room where it does not fit: then files and directories differ in st_dev, no more."""
    lower = [meta_path(root, part.layer) if isinstance(part, Meta) else part.path for part in parts]
    data = [os.path.join(root, name) for name in ("layers", "gate", "late")]
    count = needed_room(len({os.stat(path).st_dev for path in lower}))
    if len(lower) + count + len(data) + 1 > _LAYERS_LIMIT:
        count = 0
    with _scaffold(f"{target}.room", parts, count) as (room, barrier):
        data.append(barrier)
        try:
            mount_overlay(target, lower=[*lower, *room], data=data, options=LAZY_OPTIONS, read_only=True)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG or not room:
                raise
            mount_overlay(target, lower=lower, data=data, options=LAZY_OPTIONS, read_only=True)


@contextmanager
def _scaffold(directory: str, parts: Sequence[Part], count: int) -> Iterator[tuple[list[str], str]]:
    """`count` empty file systems and the barrier, for as long as the block lasts or an overlay has them."""
    if is_mount_point(directory):  # left by a process that was killed in here
        detach(directory)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    mount_tmpfs(directory, source="layergate-room", options={"mode": "0700"})
    try:
        barrier = os.path.join(directory, "barrier")
        os.mkdir(barrier)
        for layer in {part.layer for part in parts if isinstance(part, Meta)}:
            os.symlink(layer, os.path.join(barrier, layer))
        room = [os.path.join(directory, str(number)) for number in range(count)]
        for path in room:
            os.mkdir(path)
            mount_tmpfs(
                path, source="layergate-room", options={"mode": "0555", "nr_inodes": "1", "size": "4k"}
            )
        yield room, barrier
    finally:
        detach(directory)  # takes what is mounted below along
        os.rmdir(directory)


def _lock(root: str) -> str:
    return os.path.join(root, "lazy", "lock")


def _record(parts: Sequence[Part], generation: str) -> _Record:
    return _Record(
        generation=generation,
        parts=[{"layer": part.layer} if isinstance(part, Meta) else {"path": part.path} for part in parts],
    )


def _read(root: str, lazy: str, suffix: str) -> LazyLower:
    path = lazy_path(root, lazy)
    with open(f"{path}{suffix}", "rb") as file:
        record = _RECORDS.decode(file.read())
    parts = tuple(
        Meta(part["layer"]) if "layer" in part else Directory(part["path"]) for part in record.parts
    )
    return LazyLower(lazy, path, parts, record.generation, mounted=is_mount_point(path))


def _write(path: str, content: bytes) -> None:
    """Readers see the whole content or none: written beside, then renamed."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
