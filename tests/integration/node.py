"""A node whose snapshotter is layergate, and what tests ask of it: trees, log lines, the end of streaming."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import msgspec

from snapshotter.cli.status_client import read_status
from snapshotter.containerd.labels import chain_ids
from snapshotter.proto import snapshots_pb2 as pb
from tests import estargz, oci, trees
from tests.integration.harness import CommandFailed, Containerd, Layergate
from tests.snapshotter.snapshots_client import mounted
from tests.trees import Entry

ON_DEMAND: Final = "[stream]\nenabled = false\n"
"""A configuration under which only what somebody opens is fetched."""

PATIENCE: Final = 60.0
"""Seconds after which something that should come about is taken for something that does not."""

_ESTARGZ_OWN: Final = (estargz.ESTARGZ_TOC, estargz.LANDMARK, estargz.NO_LANDMARK)
"""Files that an ordinary unpacker takes for files of the image."""

T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, *, patience: float = PATIENCE) -> T:
    """What `look` gives as soon as it gives something; fails after `patience`, saying `what` has not come."""
    deadline = time.monotonic() + patience
    while not (found := look()):
        assert time.monotonic() < deadline, f"in vain waited for {what}"
        time.sleep(0.02)
    return found


class LayerState(msgspec.Struct, frozen=True):
    """What `layergate status` says of one layer."""

    digest: str
    layer: str
    state: str
    error: str | None


class _Status(msgspec.Struct, frozen=True):
    layers: list[LayerState]


class Node:
    """containerd over layergate; `name` is what containerd calls the snapshotter."""

    def __init__(self, directory: str, layergate: Layergate, containerd: Containerd, name: str) -> None:
        self.directory = directory
        self.layergate = layergate
        self.containerd = containerd
        self.name = name

    def start_again(self) -> None:
        """Start `serve` again, and wait until containerd has noticed."""
        self.layergate.start()
        self.until_met()

    def until_met(self) -> None:
        """Wait until containerd, which tries anew after a pause, is connected to `serve`."""

        def met() -> bool:
            try:
                self.containerd.ctr("snapshots", "--snapshotter", self.name, "ls")
            except CommandFailed:
                return False
            return True

        eventually(met, "containerd to meet serve again")

    def pull(self, reference: str, *options: str) -> str:
        """`layergate pull`; what it prints. Raises CommandFailed."""
        return self._pull(self.layergate.socket, *options, reference)

    def pull_unannounced(self, reference: str, *options: str) -> str:
        """`layergate pull` by which layers are opened at their Prepare and not before."""
        return self._pull(f"{self.directory}/nobody.sock", *options, reference)

    def _pull(self, address: str, *arguments: str) -> str:
        options = ["--containerd", self.containerd.address, "--snapshotter", self.name, "--address", address]
        return self.layergate.command("pull", *options, *arguments)

    def run(self, reference: str, command: Sequence[str] = ()) -> str:
        """What a container prints. Raises CommandFailed."""
        return self.containerd.run(reference, command, snapshotter=self.name)

    @contextlib.contextmanager
    def mounted(self, image: oci.Image, *, snapshotter: str | None = None) -> Iterator[str]:
        """The root file system that a container of the pulled image would have, writable."""
        key = f"mounted-{time.monotonic_ns()}"
        target = os.path.join(self.directory, key)
        snapshots = ["snapshots", "--snapshotter", snapshotter or self.name]
        chain = chain_ids([layer.diff_id for layer in image.layers])
        answer = self.containerd.ctr(*snapshots, "prepare", "--mounts", key, chain[-1])
        try:
            with mounted(mounts_of(answer), target):
                yield target
        finally:
            self.containerd.ctr(*snapshots, "remove", key)
            os.rmdir(target)

    def ordinary(self, image: oci.Image, reference: str) -> dict[str, Entry]:
        """The image's tree as containerd's own overlayfs snapshotter makes it."""
        self.containerd.pull(reference)
        with self.mounted(image, snapshotter="overlayfs") as root:
            return trees.scan(root)

    def states(self) -> list[LayerState]:
        """The layers that layergate knows."""
        return msgspec.json.decode(read_status(self.layergate.socket), type=_Status).layers

    def state(self, digest: str) -> LayerState | None:
        """One layer by its blob's digest; None if layergate does not know it."""
        return next((one for one in self.states() if one.digest == digest), None)

    def until_complete(self, image: oci.Image, *, patience: float = PATIENCE) -> None:
        """Wait until every layer of the image that may be lazy is complete."""
        eventually(
            lambda: set(self.states_of(image).values()) <= {"complete"},
            f"complete layers of {image.digest}",
            patience=patience,
        )

    def is_lazy(self, image: oci.Image) -> bool:
        """Whether every layer of an image was opened by layergate, and nothing more was asked of it."""
        return set(self.states_of(image).values()) <= {"stub", "streaming"}

    def states_of(self, image: oci.Image) -> dict[str, str]:
        """The states by digest of the image's layers that have a table of contents; "unknown" is one."""
        known = {one.digest: one.state for one in self.states()}
        return {
            layer.digest: known.get(layer.digest, "unknown") for layer in image.layers if layer.toc_digest
        }

    def until_failed(self, digest: str) -> str:
        """Wait until the layer has failed; why it has."""
        state = eventually(
            lambda: next((one for one in self.states() if one.digest == digest and one.error), None),
            f"{digest} to fail",
        )
        assert state.error is not None
        return state.error

    def configure(self, text: str) -> None:
        """Give `serve` another configuration file, and wait until it has looked at it."""
        known = len(self.events("config_reloaded")) + len(self.events("config_not_reloaded"))
        fresh = os.path.join(self.directory, "layergate", "config.new")
        with open(fresh, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(fresh, os.path.join(self.directory, "layergate", "config.toml"))
        eventually(
            lambda: len(self.events("config_reloaded")) + len(self.events("config_not_reloaded")) > known,
            "the configuration to be read again",
        )

    def events(self, name: str) -> list[dict[str, str]]:
        """The log's lines of one event, as key and value."""
        with open(os.path.join(self.directory, "layergate", "layergate.log"), encoding="utf-8") as log:
            lines = [shlex.split(line) for line in log if f" event={name} " in line and line.endswith("\n")]
        return [dict(word.partition("=")[::2] for word in words) for words in lines]

    def event(self, name: str, **values: str) -> dict[str, str] | None:
        """The first line of an event with these values; None if there is none."""
        for found in self.events(name):
            if all(found.get(key) == value for key, value in values.items()):
                return found
        return None

    def plain_files(self, layer: str) -> dict[str, bytes]:
        """Every regular file in a layer's plain directory by its path, whatever its name."""
        top = os.path.join(self.layergate.root, "layers", layer, "fs")
        found = {}
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        found[os.path.relpath(path, top)] = file.read()
        return found


@contextlib.contextmanager
def running_node(directory: str, *, config: str = "", name: str = "layergate") -> Iterator[Node]:
    """`layergate serve` and a containerd that knows it as `name`, below `directory`."""
    with (
        Layergate(f"{directory}/layergate", config=config) as layergate,
        Containerd(f"{directory}/containerd", snapshotters={name: layergate.socket}) as containerd,
    ):
        yield Node(directory, layergate, containerd, name)


def differences(
    ours: dict[str, Entry], ordinary: dict[str, Entry], *, implied: Sequence[str] = ()
) -> list[str]:
    """Where a tree of ours differs from the same image's unpacked by containerd.

    The root and the directories in `implied`, which have no entry in a layer, are as old as their unpacking.
    """

    def comparable(tree: dict[str, Entry]) -> dict[str, Entry]:
        return {
            path: replace(entry, mtime=0) if path in (trees.ROOT, *implied) else entry
            for path, entry in tree.items()
        }

    return trees.difference(comparable(ours), comparable(ordinary), without=_ESTARGZ_OWN)


class _Mount(msgspec.Struct, frozen=True, rename="pascal"):
    """A mount as `ctr snapshots prepare --mounts` prints it."""

    type: str
    source: str
    options: list[str]


def mounts_of(printed: str) -> list[pb.Mount]:
    """What `ctr snapshots prepare --mounts` printed."""
    found = msgspec.json.decode(printed, type=list[_Mount])
    return [pb.Mount(type=one.type, source=one.source, options=one.options) for one in found]


def program_files(*names: str) -> list[estargz.Entry]:
    """This machine's programs with the libraries that they need, as entries of a layer."""
    paths = dict.fromkeys(os.path.realpath(f"/bin/{name}") for name in names)
    entries = {f"bin/{name}": os.path.realpath(f"/bin/{name}") for name in names}
    for path in paths:
        listed = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
        for word in listed.split():
            if word.startswith("/"):
                entries[word.lstrip("/")] = word
    parents = sorted({name[:end] for name in entries for end, letter in enumerate(name) if letter == "/"})
    made = [estargz.dir(f"{parent}/") for parent in parents]
    for name, path in entries.items():
        with open(path, "rb") as source:
            made.append(estargz.file(name, source.read(), mode=0o755))
    return made
