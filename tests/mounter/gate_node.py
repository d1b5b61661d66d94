"""A node with a real gate: layers whose blobs are files, a mounter that can be broken, and mounts on it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

import anyio
import msgspec
import pytest

from fetcher.blob import FileBlob
from fetcher.opening import open_layer
from fetcher.plain import PlainLayer
from fetcher.store import FileSource, LayerStore
from mounter.client import Mounter
from mounter.control import Status
from mounter.errors import MounterError, MounterUnreachable
from mounter.lowers import Meta, mount_lazy_lower
from mounter.meta import MetaForm, ensure_meta
from mounter.probe import Mode
from mounter.settings import MounterSettings
from mounter.syscalls import mount_overlay
from tests.estargz import Entry, build

PATIENCE: Final = 60.0
"""Seconds after which something that should happen counts as not happening."""

T = TypeVar("T")


def until(condition: Callable[[], bool], what: str, *, patience: float = PATIENCE) -> None:
    """Wait for `condition`; fails the test, naming `what` was waited for, if it never holds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


class GateNode:
    """Close it in any case: that ends the mounters and whatever waits for them."""

    def __init__(self, root: str) -> None:
        self.root = os.path.join(root, "node")
        self.faults = os.path.join(root, "faults")
        self.blobs = os.path.join(root, "blobs")
        for directory in (self.root, self.faults, self.blobs):
            os.mkdir(directory, 0o700)
        self.store = LayerStore(self.root)
        self.mounter = Mounter(self.root)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._containers = 0
        self._pool = ThreadPoolExecutor(64)

    def start(self, mode: Mode = Mode.GATE, settings: MounterSettings | None = None) -> Status:
        """Start a mounter and wait until it answers; unless told otherwise it fetches no neighbours."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.mounter.faulty_mounter", self.root, mode.value, self.faults],
            stdin=subprocess.PIPE,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        )
        self.processes.append(process)
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(msgspec.json.encode(settings or MounterSettings(neighbour_bytes=0)))

        def answers() -> bool:
            assert process.poll() is None, f"the mounter ended with {process.returncode}"
            try:
                return self.mounter.status().pid == process.pid
            except MounterUnreachable:
                return False

        until(answers, "the mounter")
        return self.mounter.status()

    def kill(self) -> None:
        """kill -9 of the mounter that was started last."""
        self.processes[-1].kill()
        self.processes[-1].wait()

    def add(self, entries: Iterable[Entry], *, chunk_size: int = 4 << 20, min_chunk_size: int = 0) -> str:
        """Open a layer as the snapshotter does, without fetching a file of it; gives its key."""
        layer = build(entries, chunk_size=chunk_size, min_chunk_size=min_chunk_size)
        path = os.path.join(self.blobs, layer.digest.partition(":")[2])
        with open(path, "wb") as blob:
            blob.write(layer.blob)

        async def opened() -> str:
            return await open_layer(
                self.store,
                FileBlob(path),
                digest=layer.digest,
                size=len(layer.blob),
                promised_toc_digest=layer.toc_digest,
                source=FileSource(path),
                image="image",
            )

        key = anyio.run(opened)
        ensure_meta(self.root, key, self.store.tree(key), MetaForm.EROFS)
        return key

    def plain(self, layer: str) -> PlainLayer:
        return PlainLayer(self.store.fs(layer), self.store.tree(layer))

    def plain_path(self, layer: str, path: str) -> str:
        return os.path.join(self.store.fs(layer), path)

    def late_path(self, layer: str, path: str) -> str:
        return os.path.join(self.root, "late", layer, "fs", path)

    def container(self, *layers: str) -> str:
        """Mount a container on the lazy lower of `layers`, the uppermost first; gives its root."""
        generation = self.mounter.status().generation
        return self.container_on(mount_lazy_lower(self.root, [Meta(layer) for layer in layers], generation))

    def container_on(self, *lower: str) -> str:
        """Mount a container on lower directories, the uppermost first; gives its root."""
        self._containers += 1
        directory = os.path.join(os.path.dirname(self.root), f"container-{self._containers}")
        merged, upper, work = (f"{directory}-{part}" for part in ("merged", "upper", "work"))
        for path in (merged, upper, work):
            os.mkdir(path)
        options = {"upperdir": upper, "workdir": work, "xino": "on"}
        mount_overlay(merged, lower=lower, options=options, read_only=False)
        return merged

    def fault(self, name: str, content: str = "") -> None:
        with open(os.path.join(self.faults, name), "w", encoding="ascii") as file:
            file.write(content)

    def mend(self, name: str) -> None:
        os.unlink(os.path.join(self.faults, name))

    def requests(self) -> list[tuple[int, int]]:
        """The byte ranges that were asked for, in order."""
        try:
            with open(os.path.join(self.faults, "requests"), encoding="ascii") as file:
                return [(int(line.split()[0]), int(line.split()[1])) for line in file]
        except FileNotFoundError:
            return []

    def background(self, function: Callable[[], T]) -> Future[T]:
        """Run something that may wait for the gate beside the test."""
        return self._pool.submit(function)

    def close(self) -> None:
        with suppress(MounterError):
            self.mounter.stop()
            with suppress(subprocess.TimeoutExpired):
                self.processes[-1].wait(3)
        for process in self.processes:
            process.kill()
            process.wait()
        self._pool.shutdown(wait=True)


def read(*parts: str) -> bytes:
    with open(os.path.join(*parts), "rb") as file:
        return file.read()


def drop_caches() -> None:
    """Have the kernel forget pages, dentries and inodes that nobody uses."""
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


@pytest.fixture(name="node")
def gate_node(scratch: str) -> Iterator[GateNode]:
    """A node below `scratch`; for whoever imports it."""
    node = GateNode(scratch)
    try:
        yield node
    finally:
        node.close()
