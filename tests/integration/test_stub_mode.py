"""The fallback, forced: whole trees by FUSE while layers stream, native directories from the next mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from tests import oci, trees
from tests.estargz import Layer, build, dir, file, plain
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import mounts
from tests.integration.node import ON_DEMAND, Node, differences, eventually, program_files, running_node
from tests.integration.test_odd_layers import ODD, noise

pytestmark = pytest.mark.containerd

STUB = '[lazy]\nmode = "stub"\n'
GONE = f"{os.strerror(errno.ENOTCONN)}|{os.strerror(errno.ECONNABORTED)}"
LEFT_OUT = (
    "many layers",
    "a legacy footer",
    "without chunk digests",
    "a landmark",
    "a landmark that says no",
)
"""What differs for the fetcher and not for the tree, or takes long."""


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def nodes(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/stub", config=STUB + ON_DEMAND) as node:
        yield node


@pytest.fixture
def node(nodes: Node) -> Node:
    nodes.configure(STUB + ON_DEMAND)
    return nodes


def layers(tag: str) -> list[Layer]:
    return [
        build([*program_files("sh", "cat", "sleep"), dir("etc/"), file("etc/one", b"one\n")]),
        plain([dir("etc/"), file("etc/two", b"two\n")]),
        build([dir("etc/"), file("etc/three", b"three\n"), file("large", noise(3 << 20, hash(tag)))]),
    ]


def lowers(root: str) -> str:
    (mount,) = mounts(root)
    return mount.options


def test_a_container_runs_while_nothing_is_here_and_the_next_is_native(
    node: Node, shelf: FaultyRegistry
) -> None:
    image = oci.image(layers("runs"))
    reference = shelf.add_image("stub/runs", image)
    assert "(2 lazy, 1 unpacked)" in node.pull(reference)
    expected = node.ordinary(image, reference)
    said = "one\ntwo\nthree\n"
    read = ["/bin/cat", "/etc/one", "/etc/two", "/etc/three"]
    assert node.run(reference, read) == said
    with (
        node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as container,
        node.mounted(image) as root,
    ):
        assert "/root/gate/" in lowers(root)
        status = node.layergate.status()["mounter"]
        assert isinstance(status, dict)
        assert status["mode"] == "stub"
        assert differences(trees.scan(root), expected) == []
        container.execute("/bin/sh", "-c", "echo more >>/etc/two")
        node.configure(STUB)
        node.until_complete(image)
        assert differences(trees.scan(root), expected) == []
        assert container.execute(*read) == "one\ntwo\nmore\nthree\n"
    with node.mounted(image) as root:
        assert "/root/gate/" not in lowers(root)
        assert differences(trees.scan(root), expected) == []
    assert node.run(reference, read) == said


@pytest.mark.parametrize("name", [name for name in ODD if name not in LEFT_OUT])
def test_odd_layers(node: Node, shelf: FaultyRegistry, name: str) -> None:
    odd = ODD[name]
    reference = shelf.add_image("stub/odd", odd.image, tag=f"t{list(ODD).index(name)}")
    node.pull(reference)
    with node.mounted(odd.image) as root:
        assert differences(trees.scan(root), node.ordinary(odd.image, reference), implied=odd.implied) == []


def test_a_killed_mounter_is_an_error_for_who_runs_on_it_and_none_for_who_comes(
    node: Node, shelf: FaultyRegistry
) -> None:
    image = oci.image(layers("killed"))
    reference = shelf.add_image("stub/killed", image)
    node.pull(reference)
    with node.mounted(image) as root:
        with open(f"{root}/etc/one", encoding="utf-8") as one:
            assert one.read() == "one\n"
        node.layergate.kill9_mounter()
        with pytest.raises(OSError, match=GONE):
            os.stat(f"{root}/etc/three")
        eventually(lambda: node.events("mounter_lost"), "serve to see that the mounter is gone")
        assert node.run(reference, ["/bin/cat", "/etc/one", "/etc/three"]) == "one\nthree\n"
        with pytest.raises(OSError, match=GONE):
            os.stat(f"{root}/etc/three")
    node.configure(STUB)
    node.until_complete(image)
    with node.mounted(image) as root:
        assert "/root/gate/" not in lowers(root)
