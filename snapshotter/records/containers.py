"""Recording what the first container of each image opens, for its first seconds.

    Prepare   ->  expect(upper directory, chain)        we only answer what is to be mounted
    containerd mounts the overlay                       the kernel tells of a change of the mount table
              ->  its file system is marked             mounter.fanotify
    after some seconds, or when it is unmounted
              ->  ROOT/records/<chain>.jsonl

The overlay is known by its upper directory, so it is found wherever containerd mounts it, as long as that
mount reaches our mount namespace. Each mount of it is a file system of its own: one on which nothing was
opened was not the container's, and the next one is waited for.

A container is never worse off for it: it waits for nothing, and what goes wrong here is a line in the log.
Opens are counted up to a limit, and so are containers recorded at a time.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.lowlevel
from anyio import to_thread
from anyio.abc import TaskGroup

from fetcher.logs import get_logger
from fetcher.record import VERSION, Header, OpenedFile, Record
from fetcher.store import LayerStore
from mounter.fanotify import OpenRecorder
from mounter.mountinfo import Mount, read_mounts
from snapshotter.config import RecordConfig
from snapshotter.lowers import LazyLink, Link
from snapshotter.manual.watching import mount_changes
from snapshotter.records.store import RecordStore

log = get_logger("layergate.records")

_AT_ONCE: Final = 16
"""Containers expected or recorded at a time; of an image passed over, the next one counts as its first."""
_LOOK_SECONDS: Final = 0.02
"""The mount table is looked at so often at most: a runtime takes longer from a mount to its first program."""
_PASSING: Final = "containerd-mount"
"""containerd mounts a snapshot in a directory so called for a moment, to look up a user in it, say."""
_EXPECTED_SECONDS: Final = 60.0
"""A snapshot that is not mounted by then may never be, nor one used on which nothing was opened."""
_CHAIN_ID: Final = re.compile(r"(?:^|/)(sha256:[0-9a-f]{64})(?:@[0-9]+)?$")
"""containerd puts a namespace and a number before it, and we a time behind it where a name is taken."""
_PATHS: Final = 20_000
_OPENS: Final = 200_000
"""Of one container: some 2 s of processor time."""


@dataclass(slots=True)
class _Expected:
    """An overlay that is to be recorded; `target` once it is mounted."""

    upper: str
    chain: str
    layers: Sequence[str]
    since: float
    target: str | None = None
    gone: anyio.Event = field(default_factory=anyio.Event)


class ContainerRecords:
    """Records containers while `run` runs; belongs to serve's event loop."""

    def __init__(self, store: LayerStore, config: RecordConfig) -> None:
        self._store = store
        self._records = RecordStore(store.root)
        self._config = config
        self._expected: dict[str, _Expected] = {}
        """By chain."""
        self._changed = anyio.Event()

    def configure(self, config: RecordConfig) -> None:
        """Take a new configuration; what is being recorded goes on."""
        self._config = config

    def expect(self, upper: str, parent: str, chain: Sequence[Link]) -> None:
        """A container's overlay with this upper directory is about to be mounted.

        `parent` is the name of the snapshot that it stands on, `chain` what that is made of, the uppermost
        first. Whether the container is worth recording is decided here.
        """
        if not self._config.enabled or len(self._expected) >= _AT_ONCE:
            return
        image = chain_id(parent)
        if image is not None and image not in self._expected and not self._records.has(image):
            layers = [link.layer for link in reversed(chain) if isinstance(link, LazyLink)]
            self._expected[image] = _Expected(upper, image, layers, anyio.current_time())
            self._changed.set()

    async def run(self) -> None:
        """Watch for the overlays that are expected, and record them, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                try:
                    await to_thread.run_sync(self._records.trim)
                    await self._watch(tasks)
                except OSError as error:
                    log.warning("containers_not_recorded", error=str(error))
                    self._expected.clear()

    async def _watch(self, tasks: TaskGroup) -> None:
        """Look at the mount table with each change of it, as long as anything is expected or recorded."""
        with mount_changes() as changes:
            while self._expected:
                mounted = overlays(await to_thread.run_sync(read_mounts))
                for one in list(self._expected.values()):
                    target = mounted.get(one.upper)
                    if one.target is not None:
                        if target != one.target:
                            one.gone.set()
                    elif target is not None:
                        one.target = target
                        tasks.start_soon(self._record, one, target)
                    elif anyio.current_time() - one.since > _EXPECTED_SECONDS:
                        del self._expected[one.chain]
                await anyio.sleep(_LOOK_SECONDS)
                await changes.next()

    async def _record(self, one: _Expected, target: str) -> None:
        started = time.time()
        try:
            with contextlib.closing(OpenRecorder(target, paths=_PATHS, events=_OPENS)) as recorder:
                await _follow(recorder, self._config.seconds, one.gone)
            if recorder.opens:
                await to_thread.run_sync(self._keep, one, recorder, started)
                self._expected.pop(one.chain, None)
        except FileNotFoundError:
            pass  # unmounted since we looked
        except Exception as error:
            # Whatever it is, the container and everything else of serve's must go on as if nobody had looked.
            log.warning("container_not_recorded", chain=one.chain, error=repr(error))
            self._expected.pop(one.chain, None)
        finally:
            one.target, one.gone = None, anyio.Event()

    def _keep(self, one: _Expected, recorder: OpenRecorder, started: float) -> None:
        record = Record(
            Header(
                layergate_record=VERSION,
                images=self._images(one.layers),
                chain=one.chain,
                layers=list(one.layers),
                started=round(started, 3),
                seconds=round(time.time() - started, 3),
                incomplete=recorder.lost or recorder.full,
            ),
            tuple(OpenedFile(path, at) for path, at in recorder.opens.items()),
        )
        path = self._records.keep(record)
        log.info("container_recorded", chain=one.chain, files=len(record.files), path=path)

    def _images(self, layers: Sequence[str]) -> list[str]:
        """The images that have all these layers."""
        names: list[str] | None = None
        for layer in layers:
            images = self._store.record(layer).images
            names = images if names is None else [name for name in names if name in images]
        return names or []


def chain_id(name: str) -> str | None:
    """The chain ID in the name of a committed snapshot; None for one that is not of an image. Pure."""
    found = _CHAIN_ID.search(name)
    return None if found is None else found[1]


def overlays(mounts: Sequence[Mount]) -> dict[str, str]:
    """Where each container's overlay may be mounted, by upper directory; the first mount of several. Pure."""
    found: dict[str, str] = {}
    for mount in mounts:
        if mount.fstype == "overlay" and not os.path.basename(mount.target).startswith(_PASSING):
            for option in mount.super_options:
                if option.startswith("upperdir="):
                    found.setdefault(option.removeprefix("upperdir="), mount.target)
    return found


async def _follow(recorder: OpenRecorder, seconds: float, gone: anyio.Event) -> None:
    """Record for so long from the first open on, or until the container is gone or the recorder full.

    A runtime may take its time from the mount to the first program.
    """
    with anyio.move_on_after(_EXPECTED_SECONDS) as limit:
        async with anyio.create_task_group() as tasks:

            async def until_gone() -> None:
                await gone.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_gone)
            begun = False
            while not recorder.full:
                await anyio.wait_readable(recorder.fileno())
                while recorder.take():
                    await anyio.lowlevel.checkpoint()
                if recorder.opens and not begun:
                    begun = True
                    limit.deadline = anyio.current_time() + seconds
            tasks.cancel_scope.cancel()
