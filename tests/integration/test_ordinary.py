"""layergate as a node's only snapshotter, for images and snapshots that have nothing lazy about them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from snapshotter.containerd.labels import chain_ids
from tests import oci, trees
from tests.estargz import Layer, build, dir, file, plain, whiteout
from tests.integration.harness import CommandFailed, Registry, call, mounts
from tests.integration.node import ON_DEMAND, Node, differences, eventually, program_files, running_node
from tests.integration.processes import unmount_below

pytestmark = pytest.mark.containerd


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/ordinary", config=ON_DEMAND) as node:
        yield node


def layers(tag: str) -> list[Layer]:
    return [
        plain([*program_files("sh", "cat", "sleep"), dir("etc/"), file("etc/tag", tag.encode())]),
        plain([dir("etc/"), file("etc/one", b"one\n"), file("etc/two", b"two\n")]),
        plain([dir("etc/"), whiteout("etc/two"), file("etc/three", b"three\n")]),
    ]


def snapshots(node: Node, *arguments: str) -> str:
    return node.containerd.ctr("snapshots", "--snapshotter", node.name, *arguments)


def mount(command: str) -> None:
    """Run the command that `ctr snapshots prepare --target` prints."""
    call(command.split())


def directories(node: Node) -> list[str]:
    """The directories of ordinary snapshots, whatever their state."""
    return sorted(os.listdir(f"{node.layergate.root}/snapshots"))


def answers(node: Node) -> bool:
    """Whether containerd's connection to serve works."""
    try:
        snapshots(node, "prepare", "probe")
        snapshots(node, "rm", "probe")
    except CommandFailed:
        return False
    return True


def nothing_left(node: Node) -> bool:
    """Whether neither containerd nor our disk has a snapshot any more."""
    return len(snapshots(node, "ls").splitlines()) == 1 and directories(node) == []


def test_an_image_from_its_pull_to_its_end(node: Node, registry: Registry) -> None:
    image = oci.image(layers("life"))
    reference = oci.push(registry.host, "ordinary/life", image)
    node.containerd.pull(reference, snapshotter=node.name)
    assert node.run(reference, ["/bin/cat", "/etc/one", "/etc/three"]) == "one\nthree\n"
    with pytest.raises(CommandFailed, match="No such file"):
        node.run(reference, ["/bin/cat", "/etc/two"])
    assert len(directories(node)) >= 3
    with node.mounted(image) as root:
        assert differences(trees.scan(root), node.ordinary(image, reference)) == []
    assert not os.path.exists(f"{node.layergate.root}/mounter.sock")  # nothing lazy, so no process for it
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: nothing_left(node), "nothing to be left")


def test_a_container_writes_and_is_removed(node: Node, registry: Registry) -> None:
    reference = oci.push(registry.host, "ordinary/writes", oci.image(layers("writes")))
    node.containerd.pull(reference, snapshotter=node.name)
    with (
        node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as first,
        node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as second,
    ):
        first.execute("/bin/sh", "-c", "echo mine >/etc/one; echo more >/etc/new")
        assert first.execute("/bin/cat", "/etc/one", "/etc/new") == "mine\nmore\n"
        assert second.execute("/bin/cat", "/etc/one") == "one\n"
    assert node.run(reference, ["/bin/cat", "/etc/one"]) == "one\n"
    # `ctr containers delete` leaves the snapshot where the task's end did not take it.
    for line in snapshots(node, "ls").splitlines()[1:]:
        key, *_, kind = line.split()
        if kind == "Active":
            snapshots(node, "rm", key)
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: nothing_left(node), "nothing to be left")


@pytest.mark.parametrize("lazy", [False, True])
def test_a_layer_that_was_built_on_an_image_and_committed(
    node: Node, registry: Registry, directory: str, lazy: bool
) -> None:
    """As builders do: prepare, run or write, commit, and go on from there."""
    made = layers(f"build {lazy}")
    if lazy:
        made = [build([*program_files("cat"), dir("etc/"), file("etc/one", b"one\n")]), *made[1:]]
    image = oci.image(made)
    reference = oci.push(registry.host, f"ordinary/build-{lazy}".lower(), image)
    node.pull(reference)
    chain = chain_ids([layer.diff_id for layer in image.layers])[-1]
    os.mkdir(directory)
    key = f"building-{lazy}"
    mount(snapshots(node, "prepare", "--target", directory, key, chain))
    try:
        with open(f"{directory}/etc/built", "w", encoding="utf-8") as written:
            written.write("built\n")
        os.unlink(f"{directory}/etc/one")
        os.chmod(f"{directory}/etc/three", 0o600)
    finally:
        unmount_below(directory)
    snapshots(node, "commit", f"built-{lazy}", key)
    mount(snapshots(node, "prepare", "--target", directory, f"next-{lazy}", f"built-{lazy}"))
    try:
        assert set(os.listdir(f"{directory}/etc")) == {"built", "three", *(() if lazy else ("tag",))}
        with open(f"{directory}/etc/three", encoding="utf-8") as three:
            assert three.read() == "three\n"
        assert os.stat(f"{directory}/etc/three").st_mode & 0o777 == 0o600
        used = snapshots(node, "usage", f"built-{lazy}")
        assert f"built-{lazy}" in used
        with pytest.raises(CommandFailed, match="cannot remove"):
            snapshots(node, "rm", f"built-{lazy}")
    finally:
        unmount_below(directory)
        for name in (f"next-{lazy}", f"built-{lazy}"):
            snapshots(node, "rm", name)
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: nothing_left(node), "nothing to be left")


def test_lazy_mounts_go_with_the_last_snapshot_that_needs_them(node: Node, registry: Registry) -> None:
    image = oci.image([build([*program_files("cat"), file("lazily", b"lazily\n")]), *layers("mounts")[1:]])
    reference = oci.push(registry.host, "ordinary/mounts", image)
    node.pull(reference)
    assert node.run(reference, ["/bin/cat", "/lazily"]) == "lazily\n"
    with node.mounted(image):
        metas = os.path.join(node.layergate.root, "meta")
        assert [mount for mount in mounts(node.layergate.root) if mount.target.startswith(metas)]
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: nothing_left(node), "nothing to be left")
    eventually(
        lambda: not {mount.type for mount in mounts(node.layergate.root)} & {"overlay", "erofs", "tmpfs"},
        "no mount to be left but the gate",
    )


def test_what_a_killed_serve_left_half_made_is_cleaned_up(node: Node, registry: Registry) -> None:
    """A directory without a row, as a crash between the two leaves it, goes at the next clean-up."""
    orphan = f"{node.layergate.root}/snapshots/new-left"
    os.makedirs(f"{orphan}/fs/files")
    node.layergate.kill9()
    node.layergate.start()
    eventually(lambda: answers(node), "containerd to connect again")
    reference = oci.push(registry.host, "ordinary/orphan", oci.image(layers("orphan")))
    node.containerd.pull(reference, snapshotter=node.name)
    assert node.run(reference, ["/bin/cat", "/etc/one"]) == "one\n"
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: nothing_left(node), "nothing to be left")
