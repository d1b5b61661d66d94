"""Where the socket of a process's fork server (`mounter.forks`) is: below a root, and not in TMPDIR.

    ROOT/forks/pymp-*/      multiprocessing's directory with the socket; flock: held by its process
    ROOT/forks/lock         flock: held while one is made, or what killed processes left is removed

multiprocessing removes its directory when the interpreter ends in good order. In TMPDIR the directory of a
process that was killed would stay for good; here the next one removes it. Blocking.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing import util
from typing import Final

from mounter.lock import locked

_LOCK: Final = "lock"
_made: Final[list[str]] = []


def keep_fork_socket_in(root: str) -> None:
    """Have this process's fork server keep its socket below `root`; call it before there is one.

    A second call changes nothing. Raises OSError.
    """
    if _made:
        return
    directory = _directory(root)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    with locked(os.path.join(directory, _LOCK)):
        for path in left_fork_sockets(root):
            shutil.rmtree(path)
        # Both descriptors stay open as long as the process lives. By way of the first the socket has a short
        # path, whatever ROOT is: a socket's address has 107 bytes.
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        before = tempfile.tempdir
        tempfile.tempdir = f"/proc/self/fd/{top}"
        try:
            _made.append(util.get_temp_dir())
        finally:
            tempfile.tempdir = before
        fcntl.flock(os.open(_made[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH)


def remove_fork_socket() -> None:
    """What multiprocessing does at the interpreter's end, for a process that ends by `os._exit`."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


def left_fork_sockets(root: str) -> list[str]:
    """The directories of processes that are gone; one that is just being made may be among them."""
    directory = _directory(root)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    paths = [os.path.join(directory, name) for name in sorted(names) if name != _LOCK]
    return [path for path in paths if not _is_held(path)]


def remove_left_fork_sockets(root: str) -> None:
    """Remove them. Raises OSError."""
    if left_fork_sockets(root):
        with locked(os.path.join(_directory(root), _LOCK)):
            for path in left_fork_sockets(root):
                shutil.rmtree(path)


def _is_held(path: str) -> bool:
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


def _directory(root: str) -> str:
    return os.path.join(root, "forks")
