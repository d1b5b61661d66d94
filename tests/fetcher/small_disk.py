"""A file system that is soon full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def small_disk(target: str, *, kilobytes: int) -> Iterator[str]:
    """A tmpfs of so many kilobytes at `target`, for the time of the block."""
    os.makedirs(target, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "small-disk", target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=True)


def fill(directory: str) -> None:
    """Leave no block free on the file system of `directory`."""
    fd = os.open(os.path.join(directory, "ballast"), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError:
        return
    finally:
        os.close(fd)
