"""Reload of the configuration when its file, or the credentials' file, changes.

watchdog sees the directories, since editors and Kubernetes replace files by
rename. A file that cannot be read or has an error leaves the configuration as
it is, with an error in the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import anyio
import anyio.from_thread
from anyio.from_thread import BlockingPortal
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from fetcher.logs import get_logger
from snapshotter.config import Config, load_config
from snapshotter.errors import ConfigError

log = get_logger("layergate.reload")

_SETTLE_SECONDS = 0.2
"""Writers make several events; one reload follows the last."""


class _Changes(FileSystemEventHandler):
    def __init__(self, portal: BlockingPortal, event: Callable[[], None], files: frozenset[str]) -> None:
        self._portal = portal
        self._event = event
        self._files = files

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called in watchdog's thread."""
        if event.event_type in ("opened", "closed_no_write"):
            return
        names = {os.fsdecode(event.src_path), os.fsdecode(event.dest_path or "")}
        # Kubernetes mounts swap a ..data symlink: then no event names the file itself.
        if names & self._files or any(name.endswith("..data") for name in names):
            self._portal.start_task_soon(self._event)


def existing_directories(files: Iterable[str]) -> set[str]:
    """The directories of `files` that are there to be watched."""
    return {directory for one in files if os.path.isdir(directory := os.path.dirname(one))}


async def watch_config(path: str, others: Iterable[str], apply: Callable[[Config], None]) -> None:
    """Call `apply` with each new valid configuration, until cancelled; `others` are files it depends on.

    Paths are absolute.
    """
    watched = frozenset((path, *others))
    changed = anyio.Event()

    def note() -> None:
        changed.set()

    async with BlockingPortal() as portal:
        observer = Observer()
        handler = _Changes(portal, note, watched)
        for directory in existing_directories(watched):
            observer.schedule(handler, directory)
        observer.start()
        try:
            while True:
                await changed.wait()
                await anyio.sleep(_SETTLE_SECONDS)
                changed = anyio.Event()
                try:
                    apply(load_config(path))
                except ConfigError as error:
                    log.error("config_not_reloaded", error=str(error))
                else:
                    log.info("config_reloaded", path=path)
        finally:
            observer.stop()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(observer.join)
                await portal.stop(cancel_remaining=True)
