"""Cleaning without a pause, while images are pulled, run, mounted and removed: nothing used is ever taken.

30 seconds, or what LAYERGATE_CACHE_SECONDS says. The seed is printed; LAYERGATE_CACHE_SEED repeats a run
as far as its decisions go.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

import pytest

from tests import oci
from tests.integration.caching import (
    DataImage,
    cache,
    data,
    layer_directories,
    programs,
    used_by,
)
from tests.integration.harness import CommandFailed, Registry, call, disk_use, mounts
from tests.integration.node import Node, eventually, running_node
from tests.integration.processes import unmount_below

SECONDS: Final = float(os.environ.get("LAYERGATE_CACHE_SECONDS", "30"))
SEED: Final = int(os.environ.get("LAYERGATE_CACHE_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.containerd, pytest.mark.timeout(SECONDS * 2 + 240)]

MIB: Final = 1 << 20
CLEANINGS: Final[list[list[str]]] = [
    ["--all"],
    ["--all"],
    [],
    ["--older-than", "0s"],
    ["--to-size", "1MB"],
    ["--all", "--dry-run"],
]


class Load:
    """What goes on at the same time; the first failure ends it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.until = time.monotonic() + SECONDS
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def goes_on(self) -> bool:
        return not self.failures and time.monotonic() < self.until

    def run(self, *works: Callable[[], None]) -> None:
        """Do all of these at once, each again and again."""
        threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def _repeat(self, work: Callable[[], None]) -> None:
        try:
            while self.goes_on:
                work()
        except BaseException:
            # Into the main thread, where it fails the test.
            self.failures.append(traceback.format_exc())


class User:
    """Somebody with images of his own on a base that all share; everything he does has to succeed."""

    def __init__(self, load: Load, name: str, images: dict[str, DataImage], directory: str) -> None:
        self._load = load
        self._node = load.node
        self._random = random.Random(f"{SEED} {name}")
        self._images = images
        self._directory = directory
        self._pulled: set[str] = set()
        self._held: dict[str, contextlib.ExitStack] = {}
        self._mounted: dict[str, str] = {}

    def act(self) -> None:
        """One thing."""
        reference = self._random.choice(sorted(self._images))
        self._random.choice(
            [self.run, self.run, self.hold, self.remove, self.remove, self.mount, self.unmount]
        )(reference)

    def run(self, reference: str) -> None:
        """A container, from its pull to its end."""
        self._pull(reference)
        self._node.run(reference, self._images[reference].check)
        self._load.count("run")

    def hold(self, reference: str) -> None:
        """A container that stays; one that has stayed reads all once more, and ends."""
        if reference in self._held:
            self._held.pop(reference).close()
            return
        self._pull(reference)
        with contextlib.ExitStack() as stack:
            command = ["/bin/sleep", "infinity"]
            held = stack.enter_context(
                self._node.containerd.container(reference, command, snapshotter=self._node.name)
            )
            stack.callback(held.execute, *self._images[reference].check)
            self._held[reference] = stack.pop_all()
        self._load.count("hold")

    def remove(self, reference: str) -> None:
        """An image goes, whether a container runs on it or not."""
        if reference in self._pulled:
            self._pulled.discard(reference)
            self._node.containerd.ctr("images", "rm", "--sync", reference)
            self._load.count("remove")

    def mount(self, reference: str) -> None:
        """A mount by hand, which stays."""
        if reference in self._mounted:
            return
        target = os.path.join(self._directory, f"mnt{self._random.randrange(1 << 30)}")
        os.makedirs(target)
        self._node.layergate.command("mount", "--root", self._node.layergate.root, reference, target)
        self._mounted[reference] = target
        self._read_mount(reference)
        self._load.count("mount")

    def unmount(self, reference: str) -> None:
        """A mount that has stayed reads all once more, and goes."""
        if reference in self._mounted:
            self._read_mount(reference)
            target = self._mounted.pop(reference)
            self._node.layergate.command("umount", "--root", self._node.layergate.root, target)
            os.rmdir(target)
            self._load.count("unmount")

    def end(self) -> None:
        """Let go of everything."""
        for reference in sorted(self._held):
            self._held.pop(reference).close()
        for reference in sorted(self._mounted):
            self.unmount(reference)
        for reference in sorted(self._pulled):
            self.remove(reference)

    def abandon(self) -> None:
        """After a failure: end the containers, whatever they say."""
        while self._held:
            with contextlib.suppress(AssertionError, CommandFailed):
                self._held.popitem()[1].close()

    def _pull(self, reference: str) -> None:
        if reference not in self._pulled:
            self._node.pull(reference)
            self._pulled.add(reference)
            self._load.count("pull")

    def _read_mount(self, reference: str) -> None:
        target = self._mounted[reference]
        read = subprocess.run(
            f"cat {target}/data/* | sha256sum", shell=True, capture_output=True, text=True, check=True
        )
        assert read.stdout == self._images[reference].reads, read.stderr


def test_cleaning_never_takes_what_is_used(registry: Registry, directory: str) -> None:
    base = programs()
    shared = data(1000, files=20, size=50_000)

    def image(seed: int) -> DataImage:
        own = data(seed, files=20, size=100_000)
        return (
            DataImage.of(base, shared, own)
            if seed % 2
            else DataImage.of(base, own, data(seed + 500, files=5, size=5))
        )

    people = {
        name: {
            oci.push(registry.host, f"load/{name}{number}", one.image): one
            for number, one in enumerate(map(image, seeds))
        }
        for name, seeds in (("alice", range(2000, 2005)), ("bob", range(3000, 3005)))
    }
    with running_node(directory) as node:
        empty = disk_use(node.layergate.root)
        load = Load(node)
        rng = random.Random(f"{SEED} cleaner")
        users = [User(load, name, images, f"{directory}/{name}") for name, images in people.items()]

        def clean() -> None:
            report = cache(node.layergate, "clean", *rng.choice(CLEANINGS))
            assert report["problems"] == [], report
            load.count("clean")
            assert isinstance(report["removed"], list)
            if not report["dry_run"]:
                for _ in report["removed"]:
                    load.count("layer cleaned")

        try:
            load.run(clean, *(user.act for user in users))
            failures = "\n".join(load.failures)
            assert not failures, f"seed {SEED}: {failures}\n{node.layergate.log_end()}"
            print(f"seed {SEED}: {dict(sorted(load.counts.items()))}")  # noqa: T201 - shown by -s, or on failure
            for user in users:
                user.end()
        finally:
            for user in users:
                user.abandon()
            unmount_below(directory + "/alice")
            unmount_below(directory + "/bob")
        assert load.counts.get("clean"), load.counts
        assert load.counts.get("pull"), load.counts
        eventually(lambda: not any(used_by(node.layergate).values()), "everything to fall out of use")
        report = cache(node.layergate, "clean", "--all")
        assert report["done"] is True
        assert report["removed"]
        assert layer_directories(node.layergate) == []
        assert not [mount for mount in mounts(node.layergate.root) if "/meta/" in mount.target]
        left = disk_use(node.layergate.root)
        assert left < empty + MIB, call(["du", "-ax", "--threshold=16K", node.layergate.root])
        errors = [line for line in _log(node) if " level=error" in line]
        assert errors == []


def _log(node: Node) -> list[str]:
    with open(os.path.join(node.directory, "layergate", "layergate.log"), encoding="utf-8") as log:
        return log.read().splitlines()
