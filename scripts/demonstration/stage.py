"""Everything that the demonstration runs, in one directory, gone afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from scripts.containers import lowerdirs
from scripts.workplace import work_directory
from snapshotter.cli.status_client import read_status
from snapshotter.status import Status
from tests.integration.harness import (
    Container,
    Containerd,
    Layergate,
    Registry,
    Throttle,
    fresh_file_system,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Running parts."""

    directory: str
    registry: Registry
    throttle: Throttle
    layergate: Layergate
    containerd: Containerd

    def status(self) -> Status:
        """What `layergate status` shows."""
        return msgspec.json.decode(read_status(self.layergate.socket), type=Status)

    def lowerdirs(self, container: Container) -> list[str]:
        """The directories that the container's root stands on, relative to layergate's root."""
        prefix = os.path.realpath(self.layergate.root) + "/"
        return [lower.removeprefix(prefix) for lower in lowerdirs(self.containerd, container)]


@contextlib.contextmanager
def stage(rate: int) -> Iterator[Stage]:
    """A registry behind a link of `rate` bytes a second, and containerd with layergate. Raises Busy."""
    with contextlib.ExitStack() as parts:
        directory = parts.enter_context(work_directory("demo"))
        base = parts.enter_context(fresh_file_system(f"{directory}/fs"))
        registry = parts.enter_context(Registry(f"{base}/registry"))
        throttle = parts.enter_context(Throttle(f"{base}/link", registry.host, rate=rate))
        layergate = parts.enter_context(Layergate(f"{base}/layergate"))
        snapshotters = {"layergate": layergate.socket}
        containerd = parts.enter_context(Containerd(f"{base}/containerd", snapshotters=snapshotters))
        yield Stage(base, registry, throttle, layergate, containerd)
