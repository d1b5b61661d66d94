"""Mount system calls, by ctypes on libc. Blocking; every call releases the GIL.

Propagation: a mount made here takes over the propagation of what it is mounted
on, and that is deliberate. On a shared parent (systemd's default) it appears in
every mount namespace that receives events from ours, containerd's and its
shims' too, and `detach` takes it away again in all of them. A private mount would gain nothing: whether
an unmount propagates is decided by the parent. Unbindable it cannot be, because overlayfs has to clone
its layers. A namespace that copied the mount and gets no events (a private parent, or an rprivate bind
of the host's root in a container) keeps its copy after `detach`, and loses it when the mount point is
removed: the kernel unmounts everywhere what stands on a removed directory. So remove it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from mounter.overlay import OPTIONS_LIMIT, option_string

# Numbers above 424 are the same on every architecture: include/uapi/asm-generic/unistd.h.
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_FSOPEN: Final = 430
_FSCONFIG: Final = 431
_FSMOUNT: Final = 432
_MOUNT_SETATTR: Final = 442

_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_OPEN_TREE_CLONE: Final = 1
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOVE_MOUNT_BENEATH: Final = 0x200
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8

_STRING_LIMIT: Final = 255
"""Bytes of a value that fsconfig(2) takes as a string."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    """Raises OSError with the errno alone; callers say what they were about."""
    converted = [
        ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments
    ]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount(source: str, target: str, fstype: str, *, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError, naming `target`."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(fstype),
        ctypes.c_ulong(flags),
        os.fsencode(options),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot mount {fstype}: {os.strerror(code)}", target)


def detach(target: str) -> None:
    """Take the mount on `target` out of the tree at once; it ends when its last user does (MNT_DETACH).

    Raises OSError: EINVAL if nothing is mounted on `target`.
    """
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot unmount: {os.strerror(code)}", target)


def unmount(target: str) -> None:
    """Unmount what is on `target`, the uppermost mount there.

    Raises OSError: EBUSY if it is in use, EINVAL if nothing is mounted on `target`.
    """
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot unmount: {os.strerror(code)}", target)


class _Context:
    """A file system being configured: fsopen(2), and its log for the errors."""

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        try:
            self.fd = _syscall(_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, f"cannot open the file system {fstype}: {error.strerror}") from None

    def set(self, key: str, value: str | None) -> None:
        """Set an option; None sets a flag. Raises OSError with the kernel's words."""
        if value is None:
            self._configure(_SET_FLAG, key, None)
        else:
            self._configure(_SET_STRING, key, os.fsencode(value))

    def add_directory(self, key: str, path: str) -> None:
        """Add a layer, however long its path: a longer one than a string may be goes by descriptor."""
        if len(os.fsencode(path)) <= _STRING_LIMIT:
            self.set(key, path)
            return
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.set(key, f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def create(self, attributes: int) -> int:
        """The file descriptor of the new mount, attached nowhere yet."""
        self._configure(_CMD_CREATE, None, None)
        try:
            return _syscall(_FSMOUNT, self.fd, _FSMOUNT_CLOEXEC, attributes)
        except OSError as error:
            raise self._explained(error, "fsmount") from None

    def _configure(self, command: int, key: str | None, value: bytes | None) -> None:
        try:
            _syscall(_FSCONFIG, self.fd, command, None if key is None else key.encode(), value, 0)
        except OSError as error:
            what = "create" if key is None else key if value is None else f"{key}={os.fsdecode(value)}"
            raise self._explained(error, what) from None

    def _explained(self, error: OSError, what: str) -> OSError:
        words = "; ".join(self._log()) or error.strerror
        return OSError(error.errno, f"cannot mount {self.fstype} ({what}): {words}")

    def _log(self) -> list[str]:
        """The messages that the kernel kept for us, like "e overlay: ...", each without its level."""
        lines: list[str] = []
        while True:
            try:
                line = os.read(self.fd, 8192)
            except OSError:  # ENODATA: that was the last one
                return lines
            lines.append(line.decode(errors="replace").strip().removeprefix("e ").removeprefix("w "))

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def _configured(fstype: str) -> Iterator[_Context]:
    context = _Context(fstype)
    try:
        yield context
    finally:
        context.close()


def attach(fd: int, target: str) -> None:
    """Put a detached mount on `target`. Raises OSError, naming `target`."""
    _attach(fd, target, 0)


def attach_beneath(fd: int, target: str) -> None:
    """Put a detached mount beneath the uppermost one on `target`, which still covers it (Linux 6.5).

    Raises OSError, naming `target`: EINVAL where the kernel cannot, or will not for the sake of propagation.
    """
    _attach(fd, target, _MOVE_MOUNT_BENEATH)


def _attach(fd: int, target: str, flags: int) -> None:
    try:
        _syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH | flags)
    except OSError as error:
        raise OSError(error.errno, f"cannot attach a mount: {error.strerror}", target) from None


@contextmanager
def detached_bind(path: str) -> Iterator[int]:
    """The directory `path` as a mount of its own, ro, nosuid and nodev; yields its descriptor.

    It is mounted nowhere, and what is mounted below `path` is left out. Raises OSError, naming `path`;
    ENOSYS before Linux 5.12.
    """
    attributes = struct.pack("<4Q", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
    try:
        fd = _syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, f"cannot clone a mount: {error.strerror}", path) from None
    try:
        try:
            _syscall(_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, attributes, len(attributes))
        except OSError as error:
            raise OSError(error.errno, f"cannot make a mount read-only: {error.strerror}", path) from None
        yield fd
    finally:
        os.close(fd)


def mount_id(fd: int) -> int:
    """The id, as mountinfo has it, of the mount that a descriptor is on."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("mnt_id:"):
                return int(line.removeprefix("mnt_id:"))
    raise OSError(errno.ENOTSUP, "the kernel does not tell which mount a file is on")


@contextmanager
def detached_tmpfs(*, source: str, options: Mapping[str, str | None]) -> Iterator[int]:
    """A new tmpfs that is mounted nowhere; yields the descriptor of its root directory.

    It can be filled before `attach` shows it to anybody, and is gone when the
    block or the process ends without that. `source` is what mountinfo names it.
    """
    with _configured("tmpfs") as context:
        context.set("source", source)
        for key, value in options.items():
            context.set(key, value)
        fd = context.create(_MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def detached_erofs(image: str) -> Iterator[int]:
    """The EROFS image in the file `image`, mounted nowhere; yields the descriptor of its root directory.

    Without a loop device: Linux 6.12. Raises OSError with what the kernel said; ENOTBLK where it wants one.
    """
    with _configured("erofs") as context:
        context.set("source", image)
        context.set("ro", None)
        fd = context.create(_MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
    try:
        yield fd
    finally:
        os.close(fd)


def mount_tmpfs(target: str, *, source: str = "tmpfs", options: Mapping[str, str | None]) -> None:
    """Mount a new tmpfs on `target`. Raises OSError, naming `target`."""
    try:
        with detached_tmpfs(source=source, options=options) as fd:
            attach(fd, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


def mount_overlay(
    target: str,
    *,
    lower: Sequence[str],
    data: Sequence[str] = (),
    options: Mapping[str, str | None],
    read_only: bool,
) -> None:
    """Mount an overlay of `lower`, the uppermost first, and the data-only layers `data` behind it.

    Raises OSError, naming `target`, with what the kernel said.
    """
    try:
        with detached_overlay(lower=lower, data=data, options=options, read_only=read_only) as fd:
            attach(fd, target)
    except NoSeparateLowers:
        mount_overlay_by_string(target, lower=lower, data=data, options=options, read_only=read_only)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None


class NoSeparateLowers(Exception):
    """The kernel (before 6.8) takes lower directories in one string only."""


@contextmanager
def detached_overlay(
    *,
    lower: Sequence[str],
    data: Sequence[str] = (),
    options: Mapping[str, str | None],
    read_only: bool,
) -> Iterator[int]:
    """The overlay of `mount_overlay`, mounted nowhere; yields its descriptor.

    Raises NoSeparateLowers, and OSError with what the kernel said.
    """
    with _configured("overlay") as context:
        context.set("source", "layergate")
        for path in lower:
            try:
                context.add_directory("lowerdir+", path)
            except OSError as error:
                if error.errno == errno.EINVAL and "Unknown parameter" in str(error):
                    raise NoSeparateLowers from None
                raise
        for path in data:
            context.add_directory("datadir+", path)
        for key, value in options.items():
            if key in ("upperdir", "workdir") and value is not None:
                context.add_directory(key, value)
            else:
                context.set(key, value)
        if read_only:
            context.set("ro", None)
        fd = context.create(_overlay_attributes(read_only=read_only))
    try:
        yield fd
    finally:
        os.close(fd)


def _overlay_attributes(*, read_only: bool) -> int:
    return _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV if read_only else 0


def mount_overlay_by_string(
    target: str,
    *,
    lower: Sequence[str],
    data: Sequence[str],
    options: Mapping[str, str | None],
    read_only: bool,
) -> None:
    """`mount_overlay` for kernels before 6.8, where all options have to fit into a page.

    Raises OSError, naming `target`; ENAMETOOLONG if they do not fit.
    """
    text = option_string(lower, data, options)
    length = len(os.fsencode(text))
    if length > OPTIONS_LIMIT:
        raise OSError(
            errno.ENAMETOOLONG,
            f"cannot mount overlay: its options have {length} bytes, and this kernel takes {OPTIONS_LIMIT}",
            target,
        )
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV if read_only else 0
    mount("layergate", target, "overlay", flags=flags, options=text)
