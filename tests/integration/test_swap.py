"""When the layers are here, mounts are native, need no process of ours, and what lazy ones needed goes."""

from __future__ import annotations

import os
import stat

import pytest

from tests import trees
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import Container, Containerd, Throttle, mounts
from tests.integration.image import RealImage
from tests.integration.lazy import (
    NATIVE,
    by_way_of,
    image_files,
    incomplete,
    lowerdirs,
    plain_directories,
    read_layout,
    snapshots,
    status,
    transient_mounts,
    until,
    until_complete,
    until_none,
    until_prefetched,
    until_released,
)
from tests.integration.node import ON_DEMAND, running_node

pytestmark = pytest.mark.containerd

QUICK = "[lazy]\nmount_seconds = 1\n"


def test_complete_layers_need_nothing_of_ours(
    references: References, throttle: Throttle, directory: str
) -> None:
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 5_000_000
    with running_node(directory, config=QUICK + NATIVE) as node:
        layergate, containerd = node.layergate, node.containerd
        node.pull(reference)
        with containerd.container(reference, snapshotter=node.name) as before:
            assert incomplete(layergate)
            (lazy,) = lowerdirs(before)
            assert os.path.dirname(lazy) == f"{layergate.root}/lazy"
            assert os.path.relpath(lazy, layergate.root) in transient_mounts(layergate)

            throttle.rate = 0
            until_complete(layergate)
            until_released(layergate)
            with containerd.container(reference, snapshotter=node.name) as after:
                assert set(lowerdirs(after)) == plain_directories(layergate)
                assert len(lowerdirs(after)) == 4

                layergate.end_everything()
                assert layergate.descendants == []
                tree = trees.scan(f"{after.root}/")
                assert len(tree) > 10_000
                # Their root directories are each container's own.
                assert trees.difference(trees.scan(f"{before.root}/"), tree, without=[trees.ROOT]) == []
                for container in (before, after):
                    assert container.execute(*recipe.COMMAND) == recipe.OUTPUT
                    container.execute("touch", "/written")
                    assert (
                        container.execute("find", "/", "-maxdepth", "1", "-name", "written") == "/written\n"
                    )
            layergate.start()


def test_a_container_takes_the_swap_when_it_is_started_again(
    references: References, throttle: Throttle, directory: str
) -> None:
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 5_000_000
    with running_node(directory, config=QUICK) as node:
        layergate, containerd = node.layergate, node.containerd
        node.pull(reference)
        with containerd.container(reference, snapshotter=node.name) as container:
            assert incomplete(layergate)
            (lazy,) = lowerdirs(container)
            assert os.path.dirname(lazy) == f"{layergate.root}/lazy"
            # What is copied up from a lazy lower has to be copied whole.
            container.execute("chmod", "0700", "/etc/os-release", "/usr/lib/os-release")
            container.execute("mv", "/srv/app/described", "/srv/app/moved")
            container.execute("mv", "/usr/share/doc/bash", "/usr/share/doc/moved")
            container.execute("rm", "-r", "/etc/skel")
            container.execute("sh", "-c", "echo more >> /srv/app/linked")
            paths = ["usr/lib/os-release", "srv/app/moved", "srv/app/linked", "usr/share/doc/moved", "etc"]
            throttle.rate = 0
            until_complete(layergate)
            tree = trees.scan(f"{container.root}/")
            written = [tree[path] for path in paths]
            _restart(containerd, container)
            assert set(lowerdirs(container)) == plain_directories(layergate)
            tree = trees.scan(f"{container.root}/")
            assert [tree[path] for path in paths] == written
            assert written[0].mode == 0o700
            assert set(written[1].xattrs) == {"user.text", "user.binary"}
            assert {"etc/skel", "usr/share/doc/bash", "srv/app/described"}.isdisjoint(tree)
            assert "usr/share/doc/moved/copyright" in tree
            assert container.execute("tail", "-n", "1", "/srv/app/linked") == "more\n"
            assert container.execute(*recipe.COMMAND) == recipe.OUTPUT
        until_none(lambda: mounts(layergate.root), "the gate to be unmounted")


def test_what_a_container_reads_through_fuse_outlives_the_release(
    image: RealImage, references: References, directory: str
) -> None:
    """The mounter is retired when all is here, and ends with the last container that stands on its gate."""
    reference, large = references.optimized, recipe.LARGE_FILE
    with running_node(directory, config=f"{ON_DEMAND}{QUICK}[mounter]\nlarge_file_seconds = 0.001\n") as node:
        layergate = node.layergate
        node.pull(reference)
        with node.containerd.container(reference, snapshotter=node.name) as container:
            (file,) = [
                file for file in image_files(layergate, read_layout(image.optimized)) if file.path == large
            ]
            mounter = layergate.mounter_pid
            with open(f"{container.root}/{large}", "rb") as opened:
                beginning = opened.read(4096)
                assert not file.here
                assert status(layergate).fuse.open > 0

                node.configure(QUICK)
                until_complete(layergate)
                until_released(layergate)
                until_none(lambda: mounts(layergate.root), "the gate to be unmounted")
                with open(file.plain, "rb") as plain:
                    assert plain.read(4096) == beginning
                    opened.seek(0)
                    plain.seek(0)
                    assert opened.read() == plain.read()
            with open(f"{container.root}/{large}", "rb") as opened, open(file.plain, "rb") as plain:
                assert opened.read() == plain.read()
            assert layergate.descendants.count(mounter) == 1
        until(lambda: mounter not in layergate.descendants, "the mounter to end")


def test_what_an_incomplete_image_needs_goes_with_its_last_container_and_with_itself(
    references: References, directory: str
) -> None:
    reference = references.optimized
    with running_node(directory, config=ON_DEMAND + QUICK) as node:
        layergate, containerd = node.layergate, node.containerd
        node.pull(reference)
        until_prefetched(layergate)
        metas = {f"meta/{one.layer}" for one in status(layergate).layers}
        with containerd.container(reference, snapshotter=node.name) as one:
            with containerd.container(reference, snapshotter=node.name) as other:
                assert lowerdirs(one) == lowerdirs(other)
            assert len(set(transient_mounts(layergate)) - metas) == 1
            assert one.execute(*recipe.COMMAND) == recipe.OUTPUT
        until(lambda: set(transient_mounts(layergate)) == metas, "the lazy lower to be released")

        containerd.ctr("images", "remove", "--sync", reference)
        until_released(layergate)
        until_none(lambda: mounts(layergate.root), "the gate to be unmounted")
        assert snapshots(node) == {}


def _restart(containerd: Containerd, container: Container) -> None:
    """End its task and start another one: containerd asks for the mounts of its snapshot again."""
    containerd.ctr("tasks", "delete", "--force", container.name)
    containerd.ctr("tasks", "start", "--detach", "--null-io", container.name)
    assert stat.S_ISDIR(os.stat(container.root).st_mode)
