"""The peer: a stargz-snapshotter that the user has installed, for comparison on the same images.

Started as its documentation says (docs/INSTALL.md and docs/overview.md of containerd/stargz-snapshotter),
with a configuration, root and socket of its own. Debian's `ctr-remote images rpull` pulls into it, and wants
the proxy plugin to be called `stargz`. When everything is here it says itself, in the state directory that
each of its mounts has (docs/overview.md, "State directory").
"""

from __future__ import annotations

import contextlib
import glob
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from scripts.benchmark.engines import Disk, blobs, wait_until
from scripts.benchmark.group import Group, Memory
from scripts.benchmark.registry import FarRegistry, PushedImage
from tests.integration.harness import Containerd, disk_use
from tests.integration.processes import Daemon, unmount_below

_SNAPSHOTTER: Final = "stargz"
_STATE: Final = ".stargz-snapshotter"
_WHOLE: Final = 100.0


class LayerState(msgspec.Struct, frozen=True, rename="camel"):
    """What the peer says of one layer; of its fields, those that are used here."""

    digest: str
    fetched_percent: float


@dataclass(frozen=True, slots=True)
class Peer:
    """containerd with the peer; the group has the peer and the pull command."""

    containerd: Containerd
    group: Group
    root: str
    log: str
    snapshotter: str = _SNAPSHOTTER
    is_lazy: bool = True

    def pull_command(self, reference: str) -> list[str]:
        """`ctr-remote images rpull`."""
        options = ["--plain-http", "--snapshotter", self.snapshotter]
        return ["ctr-remote", "--address", self.containerd.address, "images", "rpull", *options, reference]

    def wait_until_complete(self, image: PushedImage) -> None:
        """Return once it says that all layers are fetched. Raises TimeoutError."""
        wait_until(
            lambda: set(image.layers) <= fetched_layers(self.root),
            lambda: f"the peer has {sorted(fetched_layers(self.root))} of {image.layers}: see {self.log}",
        )

    def wait_until_on_disk(self, image: PushedImage) -> None:
        """It leaves that to the kernel."""

    def check(self, image: PushedImage) -> None:
        """It stays on its own mounts."""

    def memory(self) -> Memory:
        """Of all its processes."""
        return self.group.memory()

    def disk(self) -> Disk:
        """All of its root: it keeps blobs and files, both in pieces."""
        return Disk(disk_use(self.root), blobs(self.containerd))


def fetched_layers(root: str) -> set[str]:
    """Digests of the layers that the peer with this root says it has whole."""
    found = set()
    for path in glob.glob(f"{root}/snapshotter/snapshots/*/fs/{_STATE}/*.json", include_hidden=True):
        with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
            state = msgspec.json.decode(file.read(), type=LayerState)
            if state.fetched_percent >= _WHOLE:
                found.add(state.digest)
    return found


def configuration(host: str) -> str:
    """The peer's configuration file: plain HTTP for the registry, and otherwise its defaults."""
    return f'[[resolver.host."{host}".mirrors]]\nhost = "{host}"\ninsecure = true\n'


@contextlib.contextmanager
def peer(directory: str, program: Sequence[str]) -> Iterator[Peer]:
    """containerd with the peer that `program` starts (`containerd-stargz-grpc`), which is up and idle."""
    home = f"{directory}/peer"
    os.makedirs(home)
    root, address, config, log = (f"{home}/{name}" for name in ("root", "sock", "config.toml", "log"))
    os.mkdir(root, 0o700)
    with open(config, "w", encoding="utf-8") as file:
        file.write(configuration(FarRegistry.host))
    options = ["--address", address, "--config", config, "--root", root, "--log-level", "info"]
    with (
        Group("containerd") as containerd_group,
        Group("peer") as group,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(unmount_below, root)
        daemon = Daemon([*program, *options], log=log)
        with group.entered():
            stack.enter_context(daemon)
        daemon.wait_until(lambda: _accepts(address))
        with containerd_group.entered():
            containerd = stack.enter_context(
                Containerd(f"{directory}/containerd", snapshotters={_SNAPSHOTTER: address})
            )
        yield Peer(containerd, group, root, log)


def _accepts(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address) == 0
