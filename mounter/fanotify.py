"""Which files are opened on one file system, in the order of their first opens: fanotify(7), no ptrace.

A container's overlay is marked as a whole (FAN_MARK_FILESYSTEM), by whichever mount of it we see: opens
through every mount of it are told, those in the container's mount namespace too. A mark on the mount alone
tells nothing of them.

An event comes with a descriptor of the file. The kernel names it from the root of the mount namespace that
it was opened in, which for a container is the path in the container. What is opened through the mount that
we see, as a runtime does before it has changed the root, is named from our root: `target` comes off.

An event that nobody has read yet holds the mount it came through, whose unmounting is then refused: read
them as soon as there are any, and `close` drops the rest. The kernel keeps 16,384 events at most; more are
lost, which `lost` says. O_NONBLOCK keeps us from waiting for the other end of a FIFO.

Belongs to one thread; nothing here waits.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import time
from typing import Final

# include/uapi/linux/fanotify.h
_FAN_CLOEXEC, _FAN_NONBLOCK, _FAN_CLASS_NOTIF = 0x1, 0x2, 0x0
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_FAN_OPEN, _FAN_Q_OVERFLOW = 0x20, 0x4000
_AT_FDCWD: Final = -100

_EVENT: Final = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid."""
_VERSION: Final = 3
_EVENTS_AT_ONCE: Final = 128
"""Each is an open descriptor of ours until it has been looked at."""
_DELETED: Final = " (deleted)"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = [ctypes.c_uint, ctypes.c_uint]
_libc.fanotify_mark.argtypes = [
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
]


class OpenRecorder:
    """Records the first opens of regular files on the file system that is mounted on `target`.

    It is full after `paths` distinct files or `events` opens, whichever comes first, and tells nothing new
    from then on. Opens by this process do not count. The constructor raises OSError: EPERM without
    CAP_SYS_ADMIN, ENOSYS or EINVAL where the kernel cannot.
    """

    def __init__(self, target: str, *, paths: int = 20_000, events: int = 200_000) -> None:
        self.opens: dict[str, float] = {}
        """Paths without a leading slash, in order, and when: seconds since the recorder was made."""
        self.lost = False
        """Whether there were opens that we were not told of."""
        self._target = target.rstrip("/")
        self._paths = paths
        self._events = events
        self._start = time.monotonic()
        self._pid = os.getpid()
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
        self._fd = _checked(_libc.fanotify_init(_FAN_CLASS_NOTIF | _FAN_CLOEXEC | _FAN_NONBLOCK, flags))
        try:
            what = _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM
            _checked(_libc.fanotify_mark(self._fd, what, _FAN_OPEN, _AT_FDCWD, os.fsencode(target)))
        except OSError as error:
            self.close()
            raise OSError(error.errno, f"cannot watch what is opened: {error.strerror}", target) from None

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to `take`."""
        return self._fd

    @property
    def full(self) -> bool:
        """Whether nothing more will be recorded, so that it may as well be closed."""
        return len(self.opens) >= self._paths or self._events <= 0

    def take(self) -> bool:
        """Record some of what has been opened so far; whether there may be more. Raises OSError."""
        if self.full:
            return False
        try:
            data = os.read(self._fd, _EVENTS_AT_ONCE * _EVENT.size)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
            # The file of one event could not be opened for us (ENXIO, EMFILE, ...); that event is gone.
            self._events -= 1
            self.lost = True
        else:
            self._look_at(data)
        return True

    def close(self) -> None:
        """End recording, and let go of all mounts; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _look_at(self, data: bytes) -> None:
        now = round(time.monotonic() - self._start, 3)
        position = 0
        while position < len(data):
            length, version, _, _, mask, fd, pid = _EVENT.unpack_from(data, position)
            position += length
            self._events -= 1
            if mask & _FAN_Q_OVERFLOW or version != _VERSION or fd < 0:
                self.lost = True
                continue
            try:
                if pid != self._pid:
                    self._note(fd, now)
            finally:
                os.close(fd)

    def _note(self, fd: int, now: float) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(f"{self._target}/"):
            path = path[len(self._target) :]
        path = path.lstrip("/")
        if path in self.opens or path.endswith(_DELETED) or len(self.opens) >= self._paths:
            return
        if stat.S_ISREG(os.fstat(fd).st_mode):
            self.opens[path] = now


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
