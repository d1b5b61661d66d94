"""What the tests of lazy pulling share: counters, mount tables, root file systems, a container that reads."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from fetcher.nodes import Kind
from fetcher.store import LayerStore
from snapshotter.containerd.labels import chain_ids
from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.status import Status
from snapshotter.streams import State
from tests.integration.harness import CommandFailed, Container, Containerd, Layergate, Throttle, mounts
from tests.integration.node import Node
from tests.snapshotter.snapshots_client import mounted
from tests.trees import Entry

MARGIN: Final = 256 << 10
"""Bytes on the link that are no layer's: manifests, configs, and HTTP headers of a few hundred answers."""


PATIENCE: Final = 240.0
"""Seconds after which what has not come about on the real image is taken never to."""


def until(look: Callable[[], object], what: str) -> None:
    """Return as soon as `look` gives something; fails, saying `what` has not come, after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"in vain waited for {what}"
        time.sleep(0.1)


def until_started(container: Container) -> None:
    """Wait until the container's `sleep` sleeps, so that what its own start asks for is over."""
    pid = container.pid

    def asleep() -> bool:
        # Where in the kernel it waits: in its sleep, or for a file (request_wait_answer and the like).
        with open(f"/proc/{pid}/wchan", encoding="utf-8") as file:
            place = file.read()
        return "nanosleep" in place or "pause" in place

    until(asleep, "the container to be done with its start")


def until_none(look: Callable[[], Collection[object]], what: str) -> None:
    """Return as soon as `look` gives nothing any more; fails with what is left after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while left := look():
        assert time.monotonic() < deadline, f"in vain waited for {what}: {left} is left"
        time.sleep(0.1)


def by_way_of(link: Throttle, reference: str) -> str:
    """The same image behind a slow link to its registry."""
    _, slash, rest = reference.partition("/")
    return link.host + slash + rest


def status(layergate: Layergate) -> Status:
    """What `layergate status --json` says."""
    return msgspec.convert(layergate.status(), Status)


def incomplete(layergate: Layergate) -> list[str]:
    """The keys of the layers that are not complete."""
    return [one.layer for one in status(layergate).layers if one.state is not State.COMPLETE]


def until_complete(layergate: Layergate) -> None:
    """Wait until every layer is complete."""
    try:
        until_none(lambda: incomplete(layergate), "complete layers")
    except AssertionError as error:
        raise AssertionError(f"{error}; the log of serve ends with:\n{layergate.log_end()}") from error


ONE_STREAM: Final = "[stream]\nparallel_layers = 1\n"
"""What is under way when a stream ends is lost: with one, that is little."""


NATIVE: Final = "[mounter]\nlarge_file_seconds = 3600\nwait_seconds = 60\n"
"""Every file is waited for, so that none is read through FUSE, where it would need the mounter for good."""


def until_half_is_here(layergate: Layergate, layout: Layout) -> None:
    """Wait for more than half of an image's bytes, the layer with the large file whole among them.

    A file comes whole or not at all, so that a stream which ends in a large one has fetched much in vain.
    """
    *_, uppermost = layout.layers

    def look() -> bool:
        layers = status(layergate).layers
        top_is_here = any(one.digest == uppermost and one.state is State.COMPLETE for one in layers)
        return top_is_here and sum(one.bytes_done for one in layers) > layout.size / 2

    until(look, "half of the image")


def until_prefetched(layergate: Layergate) -> None:
    """Wait, where streaming is off, until the layers of the pulled image have their prefetch ranges."""
    until(
        lambda: all(one.state is State.STUB for one in status(layergate).layers),
        "prefetch ranges",
    )


@dataclass(frozen=True, slots=True)
class Requests:
    """FUSE requests to the gate between two moments."""

    lookup: int = 0
    lookup_file: int = 0
    open: int = 0
    read: int = 0


def counting(layergate: Layergate) -> Callable[[], Requests]:
    """A function that gives the FUSE requests since now."""
    before = status(layergate).fuse

    def since() -> Requests:
        now = status(layergate).fuse
        return Requests(
            now.lookup - before.lookup,
            now.lookup_file - before.lookup_file,
            now.open - before.open,
            now.read - before.read,
        )

    return since


@dataclass(frozen=True, slots=True)
class Layout:
    """What an OCI layout in a directory says of its one image."""

    chain_id: str
    """The name of its uppermost snapshot."""
    layers: dict[str, int]
    """Digest and size in bytes of each layer."""

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(self.layers.values())


def read_layout(directory: str) -> Layout:
    """Read index, manifest and config."""

    def blob(descriptor: Mapping[str, str]) -> dict[str, object]:
        with open(f"{directory}/blobs/{descriptor['digest'].replace(':', '/')}", "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, object])

    with open(f"{directory}/index.json", encoding="utf-8") as file:
        (top,) = json.load(file)["manifests"]
    manifest = msgspec.convert(blob(top), _Manifest)
    config = msgspec.convert(blob({"digest": manifest.config.digest}), _Config)
    return Layout(
        chain_ids(config.rootfs.diff_ids)[-1], {layer.digest: layer.size for layer in manifest.layers}
    )


class _Descriptor(msgspec.Struct):
    digest: str
    size: int


class _Manifest(msgspec.Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _RootFs(msgspec.Struct):
    diff_ids: list[str]


class _Config(msgspec.Struct):
    rootfs: _RootFs


def _kept_snapshot(
    containerd: Containerd, of: list[str], make: str, key: str, chain_id: str
) -> list[dict[str, Any]]:
    """The mounts of a new snapshot, labelled so that it is kept: by then it may have been collected."""
    for _ in range(5):
        described: list[dict[str, Any]] = json.loads(containerd.ctr(*of, make, "--mounts", key, chain_id))
        try:
            containerd.ctr(*of, "label", key, "containerd.io/gc.root=test")
        except CommandFailed as error:
            if "does not exist" not in str(error):
                raise
        else:
            return described
    raise AssertionError(f"{key} was collected each time")


@contextlib.contextmanager
def root_file_system(
    containerd: Containerd,
    chain_id: str,
    target: str,
    *,
    snapshotter: str = "layergate",
    writable: bool = True,
) -> Iterator[str]:
    """The root file system of a container that stands on the snapshot `chain_id`, without the container."""
    key = os.path.basename(target)
    of = ["snapshots", "--snapshotter", snapshotter]
    # ctr's own `images mount` of containerd 1.6 knows its default snapshotter only.
    make = "prepare" if writable else "view"
    described = _kept_snapshot(containerd, of, make, key, chain_id)
    found = [pb.Mount(type=one["Type"], source=one["Source"], options=one["Options"]) for one in described]
    try:
        with mounted(found, target):
            yield target
    finally:
        containerd.ctr(*of, "remove", key)
        os.rmdir(target)


@dataclass(frozen=True, slots=True)
class File:
    """A regular file with content that an image shows at `path`."""

    path: str
    size: int
    plain: str
    """Where its plain file is, or will be."""

    @property
    def here(self) -> bool:
        """Whether it is in PLAIN."""
        return os.path.lexists(self.plain)


def image_files(layergate: Layergate, layout: Layout) -> list[File]:
    """Each file of a pulled image that no layer above its own says anything of, by path."""
    store = LayerStore(layergate.root)
    keys = {one.digest: one.layer for one in status(layergate).layers}
    above: set[str] = set()
    hiding: set[str] = set()
    found = []
    for digest in reversed(layout.layers):
        tree = store.tree(keys[digest])
        for path, node in tree.nodes.items():
            if (
                node.kind is Kind.REGULAR
                and node.size
                and path == node.path
                and path not in above
                and hiding.isdisjoint(_ancestors(path))
            ):
                found.append(File(path, node.size, f"{store.fs(keys[digest])}/{path}"))
        above.update(tree.nodes)
        hiding.update(
            path for path, node in tree.nodes.items() if node.kind is not Kind.DIRECTORY or node.opaque
        )
    return sorted(found, key=lambda file: file.path)


def _ancestors(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):
        yield path


def snapshots(node: Node) -> dict[str, str]:
    """containerd's snapshots by name, with their parents."""
    found = {}
    for line in node.containerd.ctr("snapshots", "--snapshotter", node.name, "list").splitlines()[1:]:
        words = line.split()
        found[words[0]] = words[1] if len(words) == 3 else ""
    return found


def lowerdirs(container: Container) -> list[str]:
    """The lower directories that the container's root is mounted on, as its mount table has them."""
    with open(f"/proc/{container.pid}/mountinfo", encoding="utf-8") as table:
        for line in table:
            place, _, described = line.rstrip("\n").partition(" - ")
            if place.split(" ")[4] == "/":
                kind, _, options = described.split(" ", 2)
                assert kind == "overlay"
                (found,) = [
                    option.removeprefix("lowerdir=")
                    for option in options.split(",")
                    if option.startswith("lowerdir=")
                ]
                return found.split(":")
    raise LookupError(f"container {container.name} has no root in its mount table")


def plain_directories(layergate: Layergate) -> set[str]:
    """The plain directory of every layer here."""
    return {f"{layergate.root}/layers/{one.layer}/fs" for one in status(layergate).layers}


def transient_mounts(layergate: Layergate) -> list[str]:
    """What is mounted for lazy layers alone: lazy lowers and META, relative to the root."""
    targets = [os.path.relpath(mount.target, layergate.root) for mount in mounts(layergate.root)]
    return [target for target in targets if target.startswith(("lazy/", "meta/"))]


def late_files(layergate: Layergate) -> list[str]:
    """What is linked into LATE."""
    return [
        os.path.join(directory, name)
        for directory, _, names in os.walk(f"{layergate.root}/late")
        for name in names
    ]


def until_released(layergate: Layergate) -> None:
    """Wait until nothing that lazy layers need is mounted or linked any more, the gate aside."""
    until_none(lambda: transient_mounts(layergate), "lazy lowers and META to be released")
    until_none(lambda: late_files(layergate), "LATE to be cleared")


def inode_groups(root: str) -> list[str]:
    """Where a tree's inode numbers, link counts and devices contradict one another; [] if nowhere.

    Everything has to be on one device, and paths have to share an inode number exactly if they share
    an inode, which is when their number is the link count.
    """
    device = os.lstat(root).st_dev
    found: dict[int, list[str]] = {}
    counts: dict[int, int] = {}
    wrong = []
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            here = os.lstat(path)
            if here.st_dev != device:
                wrong.append(f"{path}: on device {here.st_dev}, the root is on {device}")
            found.setdefault(here.st_ino, []).append(path)
            counts[here.st_ino] = 1 if name in directories and not os.path.islink(path) else here.st_nlink
    wrong += [
        f"{paths}: inode {number} has {counts[number]} links"
        for number, paths in found.items()
        if len(paths) != counts[number]
    ]
    return wrong


def without_contents(tree: Mapping[str, Entry]) -> dict[str, Entry]:
    """A scanned tree as `trees.scan(contents=False)` would have scanned it."""
    return {path: replace(entry, content="") for path, entry in tree.items()}
