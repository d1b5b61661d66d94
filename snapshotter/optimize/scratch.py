"""A file system for one sandbox: ext4 in a sparse file on a loop device, without read-ahead.

After a run the page cache says which pages of a file were read, if nothing was read ahead. The size of
read-ahead belongs to a device, hence one of our own: with it at 0 the resident pages are those that were
asked for. Where a host has no loop devices or no mkfs.ext4, a plain directory serves, and nobody knows which
parts of files were read.

Blocking; needs root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fetcher.errors import StoreError
from fetcher.logs import get_logger
from mounter.syscalls import detach, unmount

log = get_logger("layergate.optimize")

_LARGEST: Final = 256 << 30
_SMALLEST: Final = 1 << 30
_MKFS: Final = ("mkfs.ext4", "-q", "-F", "-m", "0", "-i", "8192", "-O", "^has_journal")
_LAZILY: Final = ("-E", "lazy_itable_init=1,nodiscard")


@dataclass(frozen=True, slots=True)
class Scratch:
    """An empty directory; `tells_reads` is whether its page cache will show what was read, and only that."""

    directory: str
    tells_reads: bool


@contextlib.contextmanager
def scratch_directory(parent: str) -> Iterator[Scratch]:
    """A directory below `parent` for the time of the block; nothing of it stays. Raises StoreError."""
    try:
        base = os.path.realpath(tempfile.mkdtemp(prefix="layergate-optimize-", dir=parent))
    except OSError as error:
        raise StoreError(
            f"cannot make a directory in {parent}: {error.strerror}", errno=error.errno or 0
        ) from error
    try:
        yield from _filled(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _filled(base: str) -> Iterator[Scratch]:
    image, directory = os.path.join(base, "image"), os.path.join(base, "fs")
    os.mkdir(directory)
    try:
        _mount_loop(image, directory)
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        log.warning("parts_not_recorded", reason=said)
        yield Scratch(directory, tells_reads=False)
        return
    try:
        # Unlinked at once: the space is free again as soon as the mount is gone, whatever ends us.
        os.unlink(image)
        yield Scratch(directory, tells_reads=_stop_read_ahead(directory))
    finally:
        try:
            unmount(directory)
        except OSError:  # somebody looks at it
            detach(directory)


def _mount_loop(image: str, directory: str) -> None:
    free = os.statvfs(os.path.dirname(image))
    size = max(_SMALLEST, min(_LARGEST, free.f_bavail * free.f_frsize))
    with open(image, "wb") as file:
        file.truncate(size)
    for command in ([*_MKFS, *_LAZILY, image], ["mount", "-o", "loop,nosuid,nodev", image, directory]):
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def _stop_read_ahead(directory: str) -> bool:
    device = os.stat(directory).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write("0")
    except OSError as error:
        log.warning("parts_not_recorded", reason=f"{path}: {error.strerror}")
        return False
    return True
