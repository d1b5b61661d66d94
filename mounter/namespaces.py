"""A mount namespace of this process's own: what it mounts ends with it at the latest, whatever ends it."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> None:
    """Give the calling thread, and the threads and processes that it starts from now on, mounts of their own.

    To be called before any other thread is there. Others see nothing of what is mounted from now on; what
    they mount and unmount is still seen here, so that nothing of theirs is held. Raises OSError: EPERM
    without CAP_SYS_ADMIN.
    """
    _checked(_libc.unshare(_CLONE_NEWNS))
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot have mounts of our own: {os.strerror(code)}")
