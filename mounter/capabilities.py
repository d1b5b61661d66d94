"""Giving up the capabilities that a process of ours does not need: capabilities(7). Blocking.

What is given up is gone for the process, for every process that it forks, and for every program that they
start. A capability belongs to a thread: call this before there is a second one.

    CHOWN DAC_OVERRIDE FOWNER FSETID SETFCAP    files of layers belong to anybody and carry any mode and xattr
    MKNOD                                       device nodes of layers
    SYS_ADMIN                                   mounts, `trusted.*` xattrs, FUSE, fanotify
    SYS_PTRACE                                  containers' mounts, by /proc/PID/ns: what they stand on stays
    SYS_RESOURCE                                to be spared by the kernel when memory is short
    SETPCAP                                     for the mounter to give up more than serve does
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from collections.abc import Collection
from typing import Final

from fetcher.logs import get_logger

log = get_logger("layergate.mounter")


class Capability(enum.IntEnum):
    """Those that we need, by the numbers of include/uapi/linux/capability.h."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    FOWNER = 3
    FSETID = 4
    SETPCAP = 8
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    MKNOD = 27
    SETFCAP = 31


SERVE: Final = frozenset(Capability)
"""What `layergate serve` needs, with its workers and the pulls that it runs."""
MOUNTER: Final = SERVE - {Capability.MKNOD, Capability.SETPCAP, Capability.SYS_PTRACE}
"""What the mounter needs: it makes regular files alone, and looks at nobody."""

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_VERSION_3: Final = 0x20080522
_NUMBERS: Final = 64
"""The kernel's sets have 64 bits each, which capset(2) takes in two halves."""

_libc = ctypes.CDLL(None, use_errno=True)


def keep_capabilities(kept: Collection[Capability]) -> None:
    """Give up all capabilities but `kept`, of which none is gained. Where that may not be, it is logged."""
    try:
        _forget_others(kept)
    except OSError as error:
        log.warning("capabilities_not_dropped", error=str(error))


def _forget_others(kept: Collection[Capability]) -> None:
    for number in range(_NUMBERS):
        if number not in kept and _is_bounding(number):
            _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    wanted = _permitted() & sum(1 << number for number in kept)
    halves = (wanted & 0xFFFFFFFF, wanted >> 32)
    # Effective, permitted, inheritable, of each half.
    sets = struct.pack("=6I", *(word for half in halves for word in (half, half, 0)))
    _checked(_libc.capset(struct.pack("=Ii", _VERSION_3, 0), sets))


def _is_bounding(number: int) -> bool:
    try:
        return bool(_prctl(_PR_CAPBSET_READ, number))
    except OSError as error:
        if error.errno == errno.EINVAL:  # this kernel knows no such capability
            return False
        raise


def _permitted() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    raise OSError(errno.ENOTSUP, "the kernel does not tell our capabilities")


def _prctl(option: int, argument: int) -> int:
    zero = ctypes.c_ulong(0)
    return _checked(_libc.prctl(option, ctypes.c_ulong(argument), zero, zero, zero))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
