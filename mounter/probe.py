"""What this host can do, found out by doing it: every answer comes from a real mount, none from a version.

The probe works in a temporary directory of its own below the data directory, so on the same file system, and
leaves nothing there. Blocking, about 20 ms.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fetcher.nodes import Kind, Node
from fetcher.tree import LayerTree
from mounter.errors import MounterError
from mounter.lowers import Meta, lazy_lowers, mount_lazy_lower, release_lazy_lower
from mounter.meta import MetaForm, ensure_meta, metas, release_meta
from mounter.mountinfo import mounts_below, read_mounts
from mounter.redirects import METACOPY
from mounter.syscalls import detach, detached_tmpfs, mount_overlay

_PREFIX: Final = ".probe-"
_FUSE_DEVICE: Final = "/dev/fuse"
_UPPERMOST, _LOWEST = "probe-uppermost", "probe-lowest"
_HERE, _LATER, _CONTENT = "here", "later", b"layergate"
_NO_UPPER: Final = ("overlay", "nfs", "nfs4", "ceph")
"""File systems that overlayfs takes for no upper directory, though some kernels let the mount pass."""


class Mode(enum.Enum):
    """How lazy layers are mounted on this host."""

    GATE = "gate"  # data-only layers: containers read native files
    STUB = "stub"  # a FUSE tree is the lower directory until the layer is complete
    NONE = "none"  # neither works here


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `ok` None is a warning, or not to be found out; `remedy` is "" if ok."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found: the mode of this host, why not a better one ("" for GATE), META's form, every check."""

    mode: Mode
    reason: str
    meta: MetaForm
    checks: tuple[Check, ...]


class _Failed(Exception):
    """What was tried went through but came out wrong; the message says how, `remedy` if not the usual one."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


def probe(directory: str) -> Probe:
    """Try what lazy layers need, on the file system of the existing `directory`. Never raises for a "no"."""
    if os.geteuid() != 0:
        check = Check("privileges", False, "mounting needs root", "run this as root")
        return Probe(Mode.NONE, check.detail, MetaForm.TMPFS, (check,))
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(directory, fcntl.LOCK_SH))
            root = tempfile.mkdtemp(prefix=_PREFIX, dir=directory)
        except OSError as error:
            check = Check(
                "data directory", False, f"cannot be written: {error}", "choose another data directory"
            )
            return Probe(Mode.NONE, check.detail, MetaForm.TMPFS, (check,))
        return _probe(root)


def left_probes(directory: str) -> list[str]:
    """What probes left in `directory` that were killed. Raises OSError if that is not there."""
    with _locked_alone(directory) as free:
        return _probes(directory) if free else []


def remove_left_probes(directory: str) -> None:
    """Remove them, and what is mounted there. Raises OSError, MountFailed."""
    with _locked_alone(directory) as free:
        for path in _probes(directory) if free else ():
            _clean(path)


def _probes(directory: str) -> list[str]:
    return [os.path.join(directory, name) for name in os.listdir(directory) if name.startswith(_PREFIX)]


@contextmanager
def _locked_alone(directory: str) -> Iterator[bool]:
    """Whether no probe runs in `directory`; if so, none begins to inside the block."""
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB))
            free = True
        except BlockingIOError:
            free = False
        yield free


@contextmanager
def _locked(directory: str, operation: int) -> Iterator[None]:
    """The directory's own flock: probes hold it together, whoever clears up after them holds it alone."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, operation)
        yield
    finally:
        os.close(fd)


def _probe(root: str) -> Probe:
    """The checks, each in the directory `root`, which is gone afterwards."""
    try:
        fuse = _check("FUSE", lambda: check_fuse(_FUSE_DEVICE), "load the module: modprobe fuse")
        upper = _check(
            "data directory",
            lambda: _try_upper(root),
            "put the data directory on a local ext4, xfs (ftype=1) or btrfs file system",
        )
        form, gate, warnings = _try_forms(root)
    finally:
        _clean(root)
    return judge(fuse, upper, gate, warnings, form)


def _try_forms(root: str) -> tuple[MetaForm, tuple[Check, ...], tuple[Check, ...]]:
    """The better form of META that goes; what the gate needs with it, and what would be better."""
    image = _check(
        "META as EROFS",
        lambda: _try_lazy(root, MetaForm.EROFS),
        "use a recent release of Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE, or accept that "
        "META is a tmpfs: 1.35 KB of memory a file, and a later start of large layers",
        required=False,
    )
    if image.ok:
        return MetaForm.EROFS, (image,), ()
    trusted = _check(
        "tmpfs trusted xattrs",
        lambda: _try_xattr("trusted.layergate"),
        "use a kernel with CONFIG_TMPFS_XATTR",
    )
    lazy = _check(
        "META as tmpfs",
        lambda: _try_lazy(root, MetaForm.TMPFS),
        "use Linux 6.5 or later, 6.8 for long chains",
    )
    user = _check(
        "tmpfs user xattrs",
        lambda: _try_xattr("user.layergate"),
        "use Linux 6.6 or later, or accept that layers with user.* xattrs are pulled whole",
        required=False,
    )
    return MetaForm.TMPFS, (trusted, lazy), (image, user)


def judge(
    fuse: Check, upper: Check, gate: tuple[Check, ...], warnings: tuple[Check, ...], form: MetaForm
) -> Probe:
    """The mode that the checks of FUSE, upper directories and the gate lead to; `warnings` change nothing."""
    checks = (fuse, upper, *gate, *warnings)
    for check in (fuse, upper):
        if not check.ok:
            return Probe(Mode.NONE, f"{check.name}: {check.detail}", form, checks)
    for check in gate:
        if not check.ok:
            return Probe(Mode.STUB, f"{check.name}: {check.detail}", form, checks)
    return Probe(Mode.GATE, "", form, checks)


def _check(name: str, attempt: Callable[[], str], remedy: str, *, required: bool = True) -> Check:
    try:
        return Check(name, True, attempt())
    except _Failed as error:
        return Check(name, False if required else None, str(error), error.remedy or remedy)
    except (OSError, MounterError) as error:
        return Check(name, False if required else None, str(error), remedy)


def check_fuse(device: str) -> str:
    """Open the FUSE device, as a session would. Raises OSError."""
    os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    return f"{device} can be opened"


def _try_xattr(name: str) -> str:
    with detached_tmpfs(source="layergate-probe", options={"mode": "0700"}) as fd:
        file = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            os.setxattr(file, name, b"y")
        finally:
            os.close(file)
    return "can be set"


def _try_upper(root: str) -> str:
    """An ordinary container overlay whose upper directory is here: copy up, delete, list."""
    fstype = _file_system(root)
    if fstype.startswith("fuse") or fstype in _NO_UPPER:
        raise _Failed(f"is on {fstype}, which cannot hold containers' upper directories")
    lower, merged = os.path.join(root, "plain"), os.path.join(root, "merged")
    os.mkdir(lower)
    for name in ("kept", "deleted"):
        _write(os.path.join(lower, name))
    with _container(root, lower, merged):
        os.chmod(os.path.join(merged, "kept"), 0o600)
        os.unlink(os.path.join(merged, "deleted"))
        if os.listdir(merged) != ["kept"]:
            raise _Failed(f"is on {fstype} without d_type: deleted files stay visible")
        if METACOPY in os.listxattr(os.path.join(root, "upper", "kept")):
            raise _Failed(
                "chmod copies up no data, because the overlay module's metacopy is on by default",
                remedy="echo N > /sys/module/overlay/parameters/metacopy, and in modprobe.d: "
                "options overlay metacopy=off",
            )
    return f"is on {fstype}, which holds containers' upper directories"


def _try_lazy(parent: str, form: MetaForm) -> str:
    """Data-only layers behind META: one file here and one that lands later, below a container's overlay."""
    root = os.path.join(parent, form.value)
    os.mkdir(root)
    try:
        _try_lazy_in(root, form)
    finally:
        _clean(root)
    return "a file is read natively, and so is one that lands after the mount"


def _try_lazy_in(root: str, form: MetaForm) -> None:
    for name in ("gate", "late"):
        os.mkdir(os.path.join(root, name))
    for layer, name in ((_UPPERMOST, _HERE), (_LOWEST, _LATER)):
        os.makedirs(os.path.join(root, "layers", layer, "fs"))
        ensure_meta(root, layer, _tree(name), form)
    _write(os.path.join(root, "layers", _UPPERMOST, "fs", _HERE))
    lower = mount_lazy_lower(root, [Meta(_UPPERMOST), Meta(_LOWEST)], "probe")
    merged = os.path.join(root, "merged")
    with _container(root, lower, merged, xino="on"):
        here, later = os.path.join(merged, _HERE), os.path.join(merged, _LATER)
        _expect_content(here)
        if _looks_absent(later):
            raise _Failed("a file that could not be fetched looks as if it did not exist")
        _write(os.path.join(root, "layers", _LOWEST, "fs", _LATER))
        _expect_content(later)
        inodes = [(found.st_dev, found.st_ino) for found in map(os.stat, (here, later))]
        if inodes[0] == inodes[1]:
            raise _Failed("two files of different layers have one inode number")
        if inodes[0][0] != os.stat(merged).st_dev:
            raise _Failed("files and directories have different st_dev")
        os.chmod(here, 0o600)
        _expect_content(os.path.join(root, "upper", _HERE))


def _tree(name: str) -> LayerTree:
    file = Node(name, Kind.REGULAR, 0o644)
    file.size = len(_CONTENT)
    return LayerTree({"": Node("", Kind.DIRECTORY), name: file}, [], landmark=None, end=0)


@contextmanager
def _container(root: str, lower: str, merged: str, **options: str) -> Iterator[None]:
    upper, work = os.path.join(root, "upper"), os.path.join(root, "work")
    for path in (upper, work, merged):
        os.mkdir(path)
    with ExitStack() as stack:
        for path in (upper, work, merged):
            stack.callback(shutil.rmtree, path)
        mount_overlay(
            merged,
            lower=[lower],
            options={"upperdir": upper, "workdir": work, **options},
            read_only=False,
        )
        stack.callback(detach, merged)
        yield


def _expect_content(path: str) -> None:
    with open(path, "rb") as file:
        if file.read() != _CONTENT:
            raise _Failed(f"{os.path.basename(path)} reads as something else")


def _looks_absent(path: str) -> bool:
    """Whether opening a file that is nowhere says that it does not exist. Raises _Failed if it opens."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENOENT
    raise _Failed("a file can be opened that is nowhere")


def _write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(_CONTENT)


def _file_system(path: str) -> str:
    """The type of the file system that `path` is on, by mountinfo."""
    found = os.stat(path).st_dev
    wanted = (os.major(found), os.minor(found))
    types = [mount.fstype for mount in read_mounts() if mount.device == wanted]
    # btrfs gives each subvolume a device number of its own, which mountinfo does not know.
    return types[-1] if types else _covering(path)


def _covering(path: str) -> str:
    real = os.path.realpath(path)
    covering = [
        mount
        for mount in read_mounts()
        if real == mount.target or real.startswith(mount.target.rstrip("/") + "/")
    ]
    return max(covering, key=lambda mount: len(mount.target)).fstype if covering else "an unknown file system"


def _clean(root: str) -> None:
    for lazy in lazy_lowers(root):
        release_lazy_lower(root, lazy.id)
    for layer in metas(root):
        release_meta(root, layer)
    for mount in reversed(mounts_below(root)):
        with suppress(OSError):
            detach(mount.target)
    shutil.rmtree(root, ignore_errors=True)
