"""The power fails: the disk keeps what had reached it, everything else is gone, and the next boot begins.

    python -m tests.faults.power_loss --rounds 3 --seed 1        prints what was seen, as JSON

EXT4_IOC_SHUTDOWN without a flush of the journal stops a file system as a power failure does: what was
written and not synced is lost, in part or whole. Everything of the node lies on it, containerd's data too. A
process of its own, in a mount namespace of its own, where the kernel's boot ID can be another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final
from uuid import uuid4

import click

from mounter.namespaces import own_mounts
from tests.estargz import Layer
from tests.faults.world import Image, Reader, Seen, make_image
from tests.faulty_registry import FaultyRegistry
from tests.integration.caching import programs
from tests.integration.harness import CommandFailed, Containerd, Layergate, call, fresh_file_system
from tests.integration.node import Node, eventually
from tests.integration.processes import mounts, unmount_below

_SHUTDOWN: Final = 0x8004587D
"""EXT4_IOC_SHUTDOWN of fs/ext4/ext4.h: _IOR('X', 125, __u32)."""
_NO_LOG_FLUSH: Final = 2
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_MOMENT: Final = 5.0
"""Seconds after a pull has begun in which the power fails; it streams for three."""
_CONFIG: Final = "[stream]\nbytes_per_second = 3000000\n[mounter]\nwait_seconds = 5.0\n"


class Machine:
    """A node that boots, and loses power."""

    def __init__(self, directory: str, disk: str, registry: FaultyRegistry) -> None:
        self.registry = registry
        self._directory = directory
        self._disk = disk
        layergate = Layergate(f"{disk}/layergate", config=_CONFIG)
        containerd = Containerd(f"{disk}/containerd", snapshotters={"layergate": layergate.socket})
        self.node = Node(disk, layergate, containerd, "layergate")

    def boot(self) -> None:
        """Mount the disk, which replays its journal, and start everything, under a new boot ID."""
        if not mounts(self._disk):
            call(["mount", "-o", "loop", f"{self._disk}.ext4", self._disk])
        identity = f"{self._directory}/boot_id"
        with open(identity, "w", encoding="ascii") as file:
            file.write(f"{uuid4()}\n")
        call(["mount", "--bind", identity, _BOOT_ID])
        self.node.layergate.start()
        self.node.containerd.start()

    def lose_power(self) -> None:
        """Stop the file system first, and then everything that runs."""
        fd = os.open(self._disk, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)
        self.end()

    def end(self) -> None:
        """Kill all processes, and undo all mounts."""
        for daemon in (self.node.layergate, self.node.containerd):
            daemon.kill9_all()
        unmount_below(self._disk)
        unmount_below(_BOOT_ID)

    def images(self) -> list[str]:
        """The references that containerd knows."""
        return self.node.containerd.ctr("images", "ls", "--quiet").split()


@contextlib.contextmanager
def _machine() -> Iterator[Machine]:
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="layergate-"))
        disk = stack.enter_context(fresh_file_system(f"{short}/d", size=2 << 30))
        machine = Machine(short, disk, stack.enter_context(FaultyRegistry()))
        stack.callback(machine.end)
        yield machine


def lose_power_once(machine: Machine, base: Layer, rng: random.Random, seen: Seen) -> None:
    """One image is complete and one on its way when the power fails; afterwards both are right."""
    node = machine.node
    complete, streaming = (make_image(base, rng.randrange(1 << 60)) for _ in range(2))
    references = {
        machine.registry.add_image(f"power/{name}-{seen.rounds}", image.image): image
        for name, image in (("complete", complete), ("streaming", streaming))
    }
    first, second = references
    machine.boot()
    node.pull(first)
    node.until_complete(complete.image)
    moment = time.monotonic() + rng.uniform(0, _MOMENT)
    with contextlib.suppress(CommandFailed):
        if rng.random() < 0.9:
            node.pull(second)
            node.containerd.ctr(
                "run", "--detach", "--null-io", "--snapshotter", node.name, second, "lost", "/bin/sleep", "60"
            )
            seen.containers += 1
    time.sleep(max(0.0, moment - time.monotonic()))
    machine.lose_power()
    seen.rounds += 1

    machine.boot()
    known = machine.images()
    assert first in known, f"an image whose pull was over is gone: {known}"
    for reference in known:
        _check(node, reference, references[reference], seen)
    for reference, image in references.items():
        node.pull(reference)
        _check(node, reference, image, seen)
        node.until_complete(image.image)
        _check(node, reference, image, seen)


def _check(node: Node, reference: str, image: Image, seen: Seen) -> None:
    with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as one:
        reader = Reader(one.root, image, seen, "")
        eventually(lambda: reader.read_all() == [], f"the files of {reference}")


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seed", type=int, required=True)
def main(rounds: int, seed: int) -> None:
    """Lose power again and again; what was seen is printed as JSON."""
    own_mounts()
    rng, seen = random.Random(seed), Seen()
    base = programs()
    for _ in range(rounds):
        with _machine() as machine:
            lose_power_once(machine, base, rng, seen)
    click.echo(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
