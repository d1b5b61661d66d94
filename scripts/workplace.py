"""A directory that one demonstration or benchmark works in at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator


class Busy(Exception):
    """Another run works there."""


def cache_directory(name: str) -> str:
    """Where demonstrations and benchmarks keep things, made if need be."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = os.path.join(cache, "layergate", name)
    os.makedirs(directory, exist_ok=True)
    return directory


@contextlib.contextmanager
def work_directory(name: str) -> Iterator[str]:
    """An empty directory, gone afterwards; what a killed run left there is removed first. Raises Busy.

    Files are all that a killed run can leave: its processes, mounts and interfaces are in namespaces that
    have ended with it (`scripts.namespaces`).
    """
    directory = cache_directory(name)
    with open(os.path.join(directory, "lock"), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another run works in {directory}") from error
        work = os.path.join(directory, "work")
        if os.path.exists(work):
            shutil.rmtree(work)
        os.mkdir(work)
        try:
            yield work
        finally:
            shutil.rmtree(work)
