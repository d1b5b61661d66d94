"""Runs a module in namespaces of its own: `python -m scripts.namespaces [--network] MODULE [ARGUMENT...]`.

The module is the first process of a process namespace, with mounts of its own and, if asked for, a
network of its own. So whatever it starts, mounts and connects ends with it, by the kernel's hand: also
when it crashes, and when this process is killed. Signals reach it as they would without this. Needs root.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_OF_OUR_OWN: Final = ("/run/containerd", "/run/netns")
"""What containerd's shims and `ip netns` share with all others of the machine."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run the module to its end; its exit status."""
    arguments = sys.argv[1:]
    kinds = _CLONE_NEWPID | _CLONE_NEWNS
    if arguments[:1] == ["--network"]:
        kinds |= _CLONE_NEWNET
        del arguments[0]
    _checked(_libc.unshare(kinds))
    child = os.fork()
    if not child:
        _checked(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
        _take_private_directories()
        os.execv(sys.executable, [sys.executable, "-m", *arguments])  # noqa: S606 - no shell is wanted

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    # A terminal sends its interrupt to both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def raise_on_termination() -> None:
    """Have signals unwind the module's stack: a first process ignores those that it does not handle.

    SIGINT too, since a shell starts what runs in its background with that ignored.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_private_directories() -> None:
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    for directory in _OF_OUR_OWN:
        os.makedirs(directory, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=711", "layergate", directory], check=True)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    status = main()
    sys.exit(128 - status if status < 0 else status)
