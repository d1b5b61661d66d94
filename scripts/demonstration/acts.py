"""The steps of the demonstration. Each says what it does and requires what has to hold."""

from __future__ import annotations

import time
from collections.abc import Mapping

from scripts.containers import run_to_first_output
from scripts.demonstration.pictures import Picture
from scripts.demonstration.stage import Stage
from scripts.demonstration.telling import heading, quote, require, tell, watch
from snapshotter.status import FuseStatus, Status
from tests import trees
from tests.integration.harness import Container

_SNAPSHOTTER = "layergate"
_STREAMING_LIMIT = 1800.0


def perform(stage: Stage, picture: Picture) -> None:
    """All steps. Raises Broken, CommandFailed."""
    begun = time.monotonic()
    pull(stage, picture)
    first_output(stage, picture, begun)
    before = stage.containerd.container(picture.reference, snapshotter=_SNAPSHOTTER)
    after = stage.containerd.container(picture.reference, snapshotter=_SNAPSHOTTER)
    with before as running:
        look_at_mount(stage, running)
        open_missing_files(picture, running, stage)
        stream(stage, begun)
        with after as new:
            swap(stage, running, new)
            end_layergate(stage, picture, running, new)


def pull(stage: Stage, picture: Picture) -> None:
    """The image becomes known to containerd; its layers do not come."""
    heading(2, "layergate pull")
    options = ["--containerd", stage.containerd.address, "--address", stage.layergate.socket]
    quote(stage.layergate.command("pull", *options, "--snapshotter", _SNAPSHOTTER, picture.reference))


def first_output(stage: Stage, picture: Picture, begun: float) -> None:
    """A container prints something while most of the image is elsewhere."""
    heading(3, "ctr run, at once")
    when, output = run_to_first_output(
        stage.containerd, picture.reference, picture.command, snapshotter=_SNAPSHOTTER
    )
    status = stage.status()
    fetched = _fetched(status)
    quote(output)
    tell(
        f"First output {when - begun:.1f} s after the pull was begun. Fetched by then: "
        f"{fetched / 1e6:.1f} MB of the image's {picture.size / 1e6:.1f} MB ({fetched / picture.size:.0%})."
    )
    tell(f"FUSE so far: {_requests(status.fuse)}.")


def look_at_mount(stage: Stage, container: Container) -> None:
    """What a container stands on while layers are missing."""
    heading(4, "A container that keeps running, and its mount")
    for lower in stage.lowerdirs(container):
        quote(f"lowerdir {lower}")
    if any(lower.startswith("lazy/") for lower in stage.lowerdirs(container)):
        tell(
            "lazy/... is a read-only overlay of the layers' trees, with file contents looked for in "
            "the plain directories first, and behind the FUSE gate only where a file is missing."
        )
    else:
        tell("Everything has come already: it stands on native directories. A slower --rate shows more.")


def open_missing_files(picture: Picture, container: Container, stage: Stage) -> None:
    """What is not here yet is fetched when it is opened."""
    if not picture.unexpected:
        return
    before = stage.status()
    begun = time.monotonic()
    output = container.execute(*picture.unexpected)
    seconds = time.monotonic() - begun
    status = stage.status()
    quote(output)
    tell(
        f"That needed files that nobody had expected: {seconds:.1f} s, "
        f"{status.on_demand.count - before.on_demand.count} of them fetched ahead of everything else."
    )


def stream(stage: Stage, begun: float) -> None:
    """The rest comes in behind the running container."""
    heading(5, "Meanwhile the rest streams in (layergate status --watch)")
    watch(stage, limit=_STREAMING_LIMIT)
    tell(f"Every byte is here and verified {time.monotonic() - begun:.1f} s after the pull was begun.")


def swap(stage: Stage, running: Container, new: Container) -> None:
    """Native mounts for new containers, no FUSE request for anybody."""
    heading(6, "The swap: a new container's mount, and what FUSE has to do now")
    lowers = stage.lowerdirs(new)
    for lower in lowers:
        quote(f"lowerdir {lower}")
    require(
        all(lower.startswith("layers/") for lower in lowers), "the new container stands on plain directories"
    )
    before = stage.status().fuse
    tree = _tree(new)
    require(stage.status().fuse == before, f"reading all its {len(tree)} entries takes no FUSE request")
    same = _tree(running)
    if not before.open:
        require(stage.status().fuse == before, "nor does it in the container that ran all along")
    _require_same(tree, same)
    tell(f"FUSE in all: {_requests(before)}.")


def end_layergate(stage: Stage, picture: Picture, running: Container, new: Container) -> None:
    """Nothing of ours is needed any more."""
    heading(7, "Without layergate: every process of it is ended")
    through_fuse = stage.status().fuse.open
    stage.layergate.end_everything()
    require(not stage.layergate.descendants, "serve, workers and mounter are gone")
    for container, title in ((new, "the new container"), (running, "the container from before")):
        quote(container.execute(*picture.command))
        require(True, f"{title} runs on")
    tree = _tree(new)
    if through_fuse:
        tell(f"{through_fuse} large files of the old container were opened through FUSE, and need a restart.")
    else:
        _require_same(tree, _tree(running))


def _tree(container: Container) -> dict[str, trees.Entry]:
    """Everything in the container, read from outside; /proc/PID/root is a symlink but for the slash."""
    return trees.scan(f"{container.root}/")


def _require_same(tree: Mapping[str, trees.Entry], same: Mapping[str, trees.Entry]) -> None:
    # The root itself is in no layer: its time is that of the container's creation.
    different = trees.difference(tree, same, without=[trees.ROOT])
    for line in different[:5]:
        quote(line)
    require(not different, "both containers' trees are equal, contents and attributes")


def _fetched(status: Status) -> int:
    fetched = status.fetched_bytes
    return fetched.toc + fetched.prefetch + fetched.on_demand + fetched.background


def _requests(fuse: FuseStatus) -> str:
    return f"{fuse.lookup} lookups, {fuse.open} opens, {fuse.read} reads"
