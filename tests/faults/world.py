"""A node with containers on it, and somebody who reads their files all the time and knows what is in them.

One file system for layergate alone, so that it can be filled; a registry that wants a login, redirects to
signed URLs, and does wrong when it is told to.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Self

from tests import oci
from tests.estargz import Layer, build, dir, file
from tests.faults.memory_group import MemoryGroup
from tests.faults.package import Package
from tests.faulty_registry import FaultyRegistry
from tests.integration.caching import cache, programs, used_by
from tests.integration.harness import (
    LAYERGATE,
    Container,
    Containerd,
    Layergate,
    call,
    fresh_file_system,
    mounts,
)
from tests.integration.node import Node, eventually
from tests.registry_faults import BearerLogin, docker_config
from tests.snapshotter.snapshots_client import SnapshotsClient

LOGIN: Final = BearerLogin("somebody", "correct-horse-battery")
PATIENCE: Final = 90.0
"""Seconds in which everything has to be well again after a fault."""
CONFIG: Final = """\
[stream]
bytes_per_second = 3000000
[mounter]
wait_seconds = 2.0
neighbour_bytes = 0
[cache]
min_free = "32MB"
[credentials]
docker_config = "{docker_config}"
"""
FILES: Final = 16
SIZE: Final = 120_000
LARGE: Final = 3_000_000
_MISFORTUNE: Final = os.path.join(os.path.dirname(os.path.abspath(__file__)), "misfortune.c")
_DISK: Final = 1 << 30
_INODES: Final = 16_384


class WrongBytes(AssertionError):
    """The one thing that must never happen."""


@dataclass
class Seen:
    """What containers and commands saw of one kind of fault."""

    rounds: int = 0
    containers: int = 0
    """That ran when it struck, all rounds together."""
    reads: int = 0
    errors_here: int = 0
    """Errors of files that had been read before, or whose layers were complete: never to be seen."""
    errors_missing: int = 0
    """Errors of files that were not here: to be seen while the fault lasts and a little longer."""
    commands_failed: int = 0
    """Pulls and starts of containers that failed, each with one clear line, and did not when tried again."""


@dataclass(frozen=True)
class Image:
    """An image and what is in its files."""

    image: oci.Image
    files: dict[str, bytes]


def make_image(base: Layer, seed: int) -> Image:
    """Two layers of data on `base`: small files, and a large one."""
    noise = random.Random(seed)
    layers, files = [], {}
    for number in range(2):
        names = [f"data/{number}/{index:03}" for index in range(FILES)]
        contents = {name: noise.randbytes(SIZE) for name in names}
        if number:
            contents["data/large"] = noise.randbytes(LARGE)
        entries = [dir("data/"), dir(f"data/{number}/")]
        layers.append(build([*entries, *(file(name, content) for name, content in contents.items())]))
        files.update(contents)
    return Image(oci.image([base, *layers]), files)


class Reader:
    """Reads the files of a running container, in random order, until it is told to stop.

    What is in `here` must be readable whatever happens.
    """

    def __init__(self, root: str, image: Image, seen: Seen, seed: str, *, here: bool = False) -> None:
        self.here = set(image.files) if here else set[str]()
        self.trouble: str | None = None
        self._root = root
        self._image = image
        self._seen = seen
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def read_all(self) -> list[str]:
        """Every file once; those that fail."""
        return [path for path in sorted(self._image.files) if not self._read(path)]

    def check(self) -> None:
        """Raise what the thread has met."""
        if self.trouble is not None:
            raise WrongBytes(self.trouble)

    def _run(self) -> None:
        paths = sorted(self._image.files)
        try:
            while not self._stop.wait(self._random.uniform(0, 0.06)):
                self._read(self._random.choice(paths))
        except BaseException:
            self.trouble = traceback.format_exc()

    def _read(self, path: str) -> bool:
        self._seen.reads += 1
        here = path in self.here  # before we ask: another thread may get it while we wait in vain
        try:
            with open(f"{self._root}/{path}", "rb") as opened:
                content = opened.read()
        except OSError as error:
            if here:
                self._seen.errors_here += 1
                self.trouble = f"{path}, which had been read before: {error}"
            else:
                self._seen.errors_missing += 1
            return False
        if content != self._image.files[path]:
            raise WrongBytes(f"{path}: {len(content)} bytes that are not its own")
        if path != "data/large":  # of a large one that was served through FUSE, only parts may be here
            self.here.add(path)
        return True


@dataclass
class Leaks:
    """What there is of ours on a node: compared, before and after."""

    mounts: list[str]
    processes: int
    entries: dict[str, list[str]]
    fork_servers: int
    descriptors: int

    def more_than(self, other: Leaks) -> list[str]:
        """What is here and not there."""
        found = [f"mount {target}" for target in self.mounts if target not in other.mounts]
        if self.fork_servers > other.fork_servers:
            found.append(f"{self.fork_servers} directories of fork servers, {other.fork_servers} before")
        if self.processes > other.processes:
            found.append(f"{self.processes} processes, {other.processes} before")
        for directory, names in self.entries.items():
            known = other.entries.get(directory, [])
            found += [f"{directory}/{name}" for name in names if name not in known]
        if self.descriptors > other.descriptors + 8:
            found.append(f"{self.descriptors} descriptors of serve, {other.descriptors} before")
        return found


@dataclass
class World:
    """The node, its registry, and what was seen so far, by the name of a fault."""

    directory: str
    registry: FaultyRegistry
    node: Node
    base: Layer
    memory: MemoryGroup
    """layergate's processes are in it."""
    package: Package
    seen: dict[str, Seen] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 30)))

    @property
    def layergate(self) -> Layergate:
        return self.node.layergate

    @property
    def disk(self) -> str:
        """Where layergate's file system is mounted."""
        return os.path.dirname(os.path.dirname(self.layergate.root))

    def befall(self, misfortune: str, how: str = "") -> None:
        """Have misfortune.c's so called happen to layergate's processes until it is spared."""
        path = os.path.join(self.directory, misfortune)
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(how)
        os.rename(file.name, path)

    def spare(self, misfortune: str) -> None:
        """Let it be over."""
        os.unlink(os.path.join(self.directory, misfortune))

    def install_another_version(self) -> None:
        """Replace the package that layergate runs from, under whatever runs."""
        self.package.install(f"{next(self._numbers)}.0")

    def new_image(self, seed: int) -> tuple[str, Image]:
        """An image that nobody has pulled yet, and its reference."""
        image = make_image(self.base, seed)
        return self.registry.add_image(f"faults/{next(self._numbers)}", image.image), image

    def forget_image(self, image: Image) -> None:
        """The registry's memory is ours."""
        for layer in image.image.layers[1:]:
            self.registry.remove_blob(layer.digest)

    def pull(self, reference: str) -> None:
        """Raises CommandFailed."""
        self.node.pull(reference, "--config", f"{self.layergate.root}/../config.toml")

    def container(self, reference: str) -> AbstractContextManager[Container]:
        """A container that sleeps."""
        command = ["/bin/sleep", "infinity"]
        return self.node.containerd.container(reference, command, snapshotter=self.node.name)

    def until_complete(self, image: Image) -> None:
        """Wait until all layers of an image are here that its snapshots stand on.

        One that could not be opened while a fault lasted was unpacked by containerd: it is unknown to us, or
        known and used by nobody.
        """
        self.node.until_met()
        deadline = time.monotonic() + PATIENCE
        pause = 0.1
        while left := self.incomplete(image):
            time.sleep(pause)
            pause = min(pause * 1.5, 10.0)
            if pause > 5:
                users = used_by(self.layergate)
                if not any(users.get(digest) for digest in left):
                    return
            assert time.monotonic() < deadline, f"not complete: {left}"

    def incomplete(self, image: Image) -> list[str]:
        """The layers that we know and that are not all here."""
        states = self.node.states_of(image.image)
        return [digest for digest, state in states.items() if state not in ("complete", "unknown")]

    def remove(self, reference: str) -> None:
        """Remove an image from containerd, once that has met serve."""
        self.node.until_met()
        self.node.containerd.ctr("images", "rm", "--sync", reference)

    def clean(self) -> None:
        """Remove every layer that nothing uses. Raises CommandFailed."""
        cache(self.layergate, "clean", "--all")

    def clear(self) -> None:
        """Remove every image and every layer. Fails if containerd's view and ours differ then.

        A container whose removal failed while a fault lasted is removed too: containerd keeps both, it and
        its snapshot, until somebody asks again. A pull that was killed has left a lease, which the next one
        deletes.
        """
        self.node.until_met()
        reference, image = self.new_image(0)
        self.pull(reference)
        self.forget_image(image)
        self.node.containerd.remove_containers()
        for reference in self.node.containerd.ctr("images", "ls", "--quiet").split():
            self.remove(reference)
        deadline = time.monotonic() + PATIENCE
        while any(left := self._snapshots()):
            assert time.monotonic() < deadline, f"snapshots of containerd and of layergate: {left}"
            time.sleep(0.2)

        def removed() -> bool:
            self.clean()
            return os.listdir(os.path.join(self.layergate.root, "layers")) == []

        eventually(removed, "unused layers to be removed")

    def _snapshots(self) -> tuple[list[str], list[str]]:
        """containerd's snapshots and ours."""
        lines = self.node.containerd.ctr("snapshots", "--snapshotter", self.node.name, "ls").splitlines()[1:]
        with SnapshotsClient(self.layergate.socket) as client:
            ours = [snapshot.name for snapshot in client.walk()]
        return [line.split()[0] for line in lines], ours

    def leaks(self) -> Leaks:
        """What there is of ours now."""
        root = self.layergate.root
        entries = {
            directory: sorted(os.listdir(os.path.join(root, directory)))
            for directory in ("", "layers", "snapshots", "lazy", "meta", "late")
            if os.path.isdir(os.path.join(root, directory))
        }
        return Leaks(
            mounts=sorted(mount.target for mount in mounts(root)),
            processes=len(self.layergate.descendants),
            entries=entries,
            fork_servers=len(os.listdir(os.path.join(root, "forks"))),
            descriptors=len(os.listdir(f"/proc/{self.layergate.pid}/fd")),
        )

    def until_nothing_leaks(self, before: Leaks) -> None:
        """Wait until there is no more than there was."""
        found: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while found := self.leaks().more_than(before):
            assert time.monotonic() < deadline, f"left behind: {found}"
            time.sleep(0.2)


@contextlib.contextmanager
def world() -> Iterator[World]:
    """A node that is up and idle."""
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="layergate-"))
        disk = stack.enter_context(fresh_file_system(f"{short}/d", size=_DISK, inodes=_INODES))
        registry = stack.enter_context(FaultyRegistry())
        registry.require(LOGIN)
        registry.redirect_blobs()
        with open(f"{short}/docker.json", "w", encoding="utf-8") as written:
            written.write(docker_config(registry.host, LOGIN))
        config = CONFIG.format(docker_config=written.name)
        call(["cc", "-shared", "-fPIC", "-o", f"{short}/misfortune.so", _MISFORTUNE, "-ldl"])
        environment = [f"LD_PRELOAD={short}/misfortune.so", f"LAYERGATE_MISFORTUNE={short}"]
        memory = stack.enter_context(MemoryGroup())
        package = Package(f"{short}/package")
        program = memory.entered(["env", *environment, *package.environment, *LAYERGATE])
        layergate = stack.enter_context(Layergate(f"{disk}/layergate", config=config, program=program))
        containerd = stack.enter_context(
            Containerd(f"{short}/c", snapshotters={"layergate": layergate.socket})
        )
        node = Node(disk, layergate, containerd, "layergate")
        yield World(short, registry, node, programs(), memory, package)
