"""What is compared: a containerd of its own for each run, and what pulls into it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from fetcher.store import LayerStore
from scripts.benchmark.group import Group, Memory
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.containers import lowerdirs
from tests.integration.harness import Container, Containerd, Layergate, disk_use
from tests.integration.processes import python

ON_DEMAND: Final = "[stream]\nenabled = false\n"
"""A configuration of layergate under which only what somebody opens is fetched."""

_COMPLETE_LIMIT: Final = 600.0
_POLL_SECONDS: Final = 0.02


class NotNative(Exception):
    """A container's mount is not what it should be after everything is here."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes on disk for one image: what containers run on, and the blobs that containerd keeps."""

    unpacked: int
    blobs: int


class Engine(Protocol):
    """One way to get an image onto a node; a run's daemons, which are up and idle at first."""

    @property
    def containerd(self) -> Containerd:
        """This run's own."""
        ...

    @property
    def group(self) -> Group:
        """The processes that bring an image."""
        ...

    @property
    def snapshotter(self) -> str:
        """What containerd calls it."""
        ...

    @property
    def is_lazy(self) -> bool:
        """Whether containers can be started before everything is here."""
        ...

    def pull_command(self, reference: str) -> list[str]:
        """The command that returns when containers can be started."""
        ...

    def wait_until_complete(self, image: PushedImage) -> None:
        """Return once every byte is here. Raises TimeoutError."""
        ...

    def wait_until_on_disk(self, image: PushedImage) -> None:
        """Return once a power loss would lose nothing, where it sees to that. Raises TimeoutError."""
        ...

    def check(self, image: PushedImage) -> None:
        """Raises NotNative if the complete image is not what it should be."""
        ...

    def memory(self) -> Memory:
        """Of all processes that run beside containerd."""
        ...

    def disk(self) -> Disk:
        """What is on the disk now."""
        ...


@dataclass(frozen=True, slots=True)
class Overlayfs:
    """containerd as it comes. Its group is what brings an image: containerd, `ctr` and unpigz."""

    containerd: Containerd
    group: Group
    snapshotter: str = "overlayfs"
    is_lazy: bool = False

    def pull_command(self, reference: str) -> list[str]:
        """`ctr images pull`."""
        options = ["--plain-http", "--snapshotter", self.snapshotter]
        return ["ctr", "--address", self.containerd.address, "images", "pull", *options, reference]

    def wait_until_complete(self, image: PushedImage) -> None:
        """Its pull brings everything."""

    def wait_until_on_disk(self, image: PushedImage) -> None:
        """It leaves that to the kernel."""

    def check(self, image: PushedImage) -> None:
        """It is native by itself."""

    def memory(self) -> Memory:
        """It adds nothing."""
        return Memory(0, 0, 0)

    def disk(self) -> Disk:
        """containerd's own directories."""
        return Disk(containerd_disk(self.containerd, "snapshotter.v1.overlayfs"), blobs(self.containerd))


@dataclass(frozen=True, slots=True)
class Lazy:
    """containerd with layergate; the group has serve, its workers, the mounter and the pull command."""

    containerd: Containerd
    group: Group
    layergate: Layergate
    snapshotter: str = "layergate"
    is_lazy: bool = True

    def pull_command(self, reference: str) -> list[str]:
        """`layergate pull`."""
        sockets = ["--containerd", self.containerd.address, "--address", self.layergate.socket]
        return python("snapshotter.entry", "pull", *sockets, "--plain-http", reference)

    def wait_until_complete(self, image: PushedImage) -> None:
        """Return once every layer here is complete. Raises TimeoutError."""
        self._wait_for_all(image, LayerStore.is_complete)

    def wait_until_on_disk(self, image: PushedImage) -> None:
        """Return once every layer here is on disk. Raises TimeoutError."""
        self._wait_for_all(image, LayerStore.is_on_disk)

    def _wait_for_all(self, image: PushedImage, is_so: Callable[[LayerStore, str], bool]) -> None:
        store = LayerStore(self.layergate.root)
        wanted = max(len(set(image.layers)), len(store.layers()))
        wait_until(
            lambda: sum(is_so(store, layer) for layer in store.layers()) >= wanted,
            lambda: f"{image.reference} is not complete; serve said:\n{self.layergate.log_end()}",
        )

    def check(self, image: PushedImage) -> None:
        """A new container's layers are plain directories of ours. Raises NotNative."""
        with self.containerd.container(image.reference, snapshotter=self.snapshotter) as container:
            lowers = lowerdirs(self.containerd, container)
            if not self._are_native(lowers):
                raise NotNative(f"{image.reference} is complete, and a new container stands on {lowers}")

    def is_native(self, container: Container) -> bool:
        """Whether the container stands on plain directories of ours alone."""
        return self._are_native(lowerdirs(self.containerd, container))

    def _are_native(self, lowers: list[str]) -> bool:
        layers = os.path.realpath(os.path.join(self.layergate.root, "layers"))
        # Of many, containerd names what is below their common parent, which is the mount's working directory.
        paths = [os.path.realpath(os.path.join(layers, lower)) for lower in lowers]
        return all(path.startswith(layers + "/") and os.path.isdir(path) for path in paths)

    def memory(self) -> Memory:
        """Of all processes of layergate."""
        return self.group.memory()

    def disk(self) -> Disk:
        """All of layergate's root."""
        return Disk(disk_use(self.layergate.root), blobs(self.containerd))


def wait_until(done: Callable[[], bool], complaint: Callable[[], str]) -> None:
    """Return once `done()`; raises TimeoutError with the complaint when it takes too long."""
    deadline = time.monotonic() + _COMPLETE_LIMIT
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint())
        time.sleep(_POLL_SECONDS)


def containerd_disk(containerd: Containerd, plugin: str) -> int:
    """Bytes on disk of one of containerd's plugins."""
    return disk_use(os.path.join(containerd.directory, "root", f"io.containerd.{plugin}"))


def blobs(containerd: Containerd) -> int:
    """Bytes on disk of containerd's content store."""
    return containerd_disk(containerd, "content.v1.content")


@contextlib.contextmanager
def overlayfs(directory: str) -> Iterator[Overlayfs]:
    """containerd by itself."""
    with Group("containerd") as group, contextlib.ExitStack() as stack:
        with group.entered():
            containerd = stack.enter_context(Containerd(f"{directory}/containerd"))
        yield Overlayfs(containerd, group)


@contextlib.contextmanager
def lazy(directory: str, *, config: str = "") -> Iterator[Lazy]:
    """containerd with layergate, which has the lines of `config` in its configuration too."""
    registry = f'[registry."{FarRegistry.host}"]\nplain_http = true\n'  # TOML
    with (
        Group("containerd") as containerd_group,
        Group("layergate") as group,
        contextlib.ExitStack() as stack,
    ):
        with group.entered():
            layergate = stack.enter_context(Layergate(f"{directory}/layergate", config=registry + config))
        with containerd_group.entered():
            containerd = stack.enter_context(
                Containerd(f"{directory}/containerd", snapshotters={"layergate": layergate.socket})
            )
        yield Lazy(containerd, group, layergate)
