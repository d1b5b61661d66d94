"""Reload of the configuration when its file, or the credentials' file, changes.

watchdog sees the directories, since editors and Kubernetes replace files by
rename. A file that cannot be read or has an error leaves the configuration as
it is, with an error in the log.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio import CancelScope, to_thread
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from fetcher.logs import get_logger
from snapshotter.config import Config, load_config
from snapshotter.errors import ConfigError

log = get_logger("layergate.reload")

_SETTLE_SECONDS: Final = 0.2
"""Writers make several events; one reload follows the last."""


class _Changes(FileSystemEventHandler):
    def __init__(self, files: frozenset[str], changed: int) -> None:
        self._files = files
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        """In watchdog's thread, with a lock that the observer's end takes: it must wait for nothing."""
        if event.event_type in ("opened", "closed_no_write"):
            return
        names = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")}
        # Kubernetes mounts swap a ..data symlink: then no event names the file itself.
        if names & self._files or any(name.endswith("..data") for name in names):
            os.eventfd_write(self._changed, 1)


def existing_directories(files: Iterable[str]) -> set[str]:
    """The directories of `files` that are there to be watched."""
    return {directory for one in files if os.path.isdir(directory := os.path.dirname(one))}


async def watch_config(path: str, others: Iterable[str], apply: Callable[[Config], None]) -> None:
    """Call `apply` with each new valid configuration, until cancelled; `others` are files it depends on.

    Paths are absolute.
    """
    async with _changes_of(frozenset((path, *others))) as changed:
        while True:
            await anyio.wait_readable(changed)
            await anyio.sleep(_SETTLE_SECONDS)
            os.eventfd_read(changed)
            try:
                apply(load_config(path))
            except ConfigError as error:
                log.error("config_not_reloaded", error=str(error))
            else:
                log.info("config_reloaded", path=path)


@asynccontextmanager
async def _changes_of(files: frozenset[str]) -> AsyncIterator[int]:
    """An eventfd that can be read once one of `files` has changed."""
    changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        observer = Observer()
        handler = _Changes(files, changed)
        for directory in existing_directories(files):
            observer.schedule(handler, directory)
        observer.start()
        try:
            yield changed
        finally:
            with CancelScope(shield=True):
                # It waits for threads that wait in their turn, up to half a second.
                await to_thread.run_sync(observer.stop)
                await to_thread.run_sync(observer.join)
    finally:
        os.close(changed)
