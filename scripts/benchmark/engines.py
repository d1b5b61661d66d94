"""What is compared: a containerd of its own for each run, and what pulls into it."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from scripts.benchmark.group import Group, Memory
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.containers import lowerdirs
from tests.integration.harness import Containerd, Layergate
from tests.integration.processes import python

_COMPLETE_LIMIT: Final = 600.0
_POLL_SECONDS: Final = 0.02


class NotNative(Exception):
    """A container's mount is not what it should be after everything is here."""


@dataclass(frozen=True, slots=True)
class Overlayfs:
    """containerd as it comes. Its group is what brings an image: containerd, `ctr` and unpigz."""

    containerd: Containerd
    group: Group
    snapshotter: str = "overlayfs"

    def pull_command(self, reference: str) -> list[str]:
        """The command that returns when containers can be started: `ctr images pull`."""
        options = ["--plain-http", "--snapshotter", self.snapshotter]
        return ["ctr", "--address", self.containerd.address, "images", "pull", *options, reference]

    def wait_until_complete(self, image: PushedImage) -> None:
        """Its pull brings everything."""

    def memory(self) -> Memory:
        """It adds nothing."""
        return Memory(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Lazy:
    """containerd with layergate; the group has serve, its workers, the mounter and the pull command."""

    containerd: Containerd
    group: Group
    layergate: Layergate
    snapshotter: str = "layergate"

    def pull_command(self, reference: str) -> list[str]:
        """The command that returns when containers can be started: `layergate pull`."""
        sockets = ["--containerd", self.containerd.address, "--address", self.layergate.socket]
        return python("snapshotter.entry", "pull", *sockets, "--plain-http", reference)

    def wait_until_complete(self, image: PushedImage) -> None:
        """Return once every byte is here. Raises TimeoutError."""
        marks = os.path.join(self.layergate.root, "layers", "*", "complete")
        deadline = time.monotonic() + _COMPLETE_LIMIT
        while len(glob.glob(marks)) < len(set(image.layers)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{image.reference} is not complete; serve said:\n{self.layergate.log_end()}"
                )
            time.sleep(_POLL_SECONDS)

    def require_native(self, image: PushedImage) -> None:
        """A new container's layers are plain directories of ours. Raises NotNative."""
        with self.containerd.container(image.reference, snapshotter=self.snapshotter) as container:
            lowers = lowerdirs(self.containerd, container)
        layers = os.path.realpath(os.path.join(self.layergate.root, "layers"))
        if not all(os.path.realpath(lower).startswith(layers + "/") for lower in lowers):
            raise NotNative(f"{image.reference} is complete, and a new container stands on {lowers}")

    def memory(self) -> Memory:
        """Of all processes of layergate."""
        return self.group.memory()


Engine: TypeAlias = Overlayfs | Lazy


@contextlib.contextmanager
def overlayfs(directory: str) -> Iterator[Overlayfs]:
    """containerd by itself."""
    with Group("containerd") as group, contextlib.ExitStack() as stack:
        with group.entered():
            containerd = stack.enter_context(Containerd(f"{directory}/containerd"))
        yield Overlayfs(containerd, group)


@contextlib.contextmanager
def lazy(directory: str, *, log_level: str = "info") -> Iterator[Lazy]:
    """containerd with layergate, which is up and idle."""
    config = f'[registry."{FarRegistry.host}"]\nplain_http = true\n[log]\nlevel = "{log_level}"\n'  # TOML
    with (
        Group("containerd") as containerd_group,
        Group("layergate") as group,
        contextlib.ExitStack() as stack,
    ):
        with group.entered():
            layergate = stack.enter_context(Layergate(f"{directory}/layergate", config=config))
        with containerd_group.entered():
            containerd = stack.enter_context(
                Containerd(f"{directory}/containerd", snapshotters={"layergate": layergate.socket})
            )
        yield Lazy(containerd, group, layergate)
