"""The real image's whole root file system, against the same image on containerd's own overlayfs.

In three states: while layers are not here yet, through the same mount when they are, and through a new
mount, which is native.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import trees
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import Containerd, Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import (
    Layout,
    by_way_of,
    incomplete,
    inode_groups,
    read_layout,
    root_file_system,
    status,
    until_complete,
    until_released,
    without_contents,
)
from tests.integration.node import ON_DEMAND, differences, running_node
from tests.trees import Entry

pytestmark = pytest.mark.containerd

QUICK = "[lazy]\nmount_seconds = 1\n"


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The image as containerd unpacks it."""

    layout: Layout
    tree: dict[str, Entry]


@pytest.fixture(scope="module")
def ordinary(file_system: str, image: RealImage, references: References) -> Iterator[Ordinary]:
    layout = read_layout(image.optimized)
    with Containerd(f"{file_system}/equal") as containerd:
        containerd.pull(references.optimized)
        target = f"{file_system}/equal/tree"
        with root_file_system(containerd, layout.chain_id, target, snapshotter="overlayfs") as root:
            assert inode_groups(root) == []
            yield Ordinary(layout, trees.scan(root))


def test_trees_are_equal_while_layers_stream_and_afterwards(
    ordinary: Ordinary, references: References, throttle: Throttle, directory: str
) -> None:
    reference = by_way_of(throttle, references.optimized)
    top = ordinary.layout.chain_id
    throttle.rate = 3_000_000
    with running_node(directory, config=QUICK) as node:
        node.pull(reference)
        with root_file_system(node.containerd, top, f"{directory}/lazy") as lazy:
            assert len(incomplete(node.layergate)) == 4
            throttle.rate = 10_000_000
            assert differences(trees.scan(lazy), ordinary.tree) == []
            fetched = status(node.layergate).fetched_bytes
            assert fetched.on_demand > 0
            assert fetched.background > 0

            throttle.rate = 0
            until_complete(node.layergate)
            assert differences(trees.scan(lazy), ordinary.tree) == []
            assert inode_groups(lazy) == []

            until_released(node.layergate)
            with root_file_system(node.containerd, top, f"{directory}/native") as native:
                assert differences(trees.scan(native), ordinary.tree) == []
                assert inode_groups(native) == []


@pytest.mark.parametrize("writable", [True, False], ids=["active", "view"])
def test_trees_are_equal_when_nothing_streams(
    ordinary: Ordinary, references: References, directory: str, writable: bool
) -> None:
    """Attributes of everything, and contents of what is small enough to be asked for one by one."""
    chosen = [
        path
        for path, entry in ordinary.tree.items()
        if entry.kind == "file" and path.startswith(("srv/", "etc/", "media")) and path != recipe.LARGE_FILE
    ]
    assert len(chosen) > 100
    with running_node(directory, config=ON_DEMAND) as node:
        node.pull(references.optimized)
        with root_file_system(
            node.containerd, ordinary.layout.chain_id, f"{directory}/root", writable=writable
        ) as root:
            found = trees.scan(root, contents=False)
            assert differences(found, without_contents(ordinary.tree)) == []
            assert inode_groups(root) == []
            assert status(node.layergate).fuse.lookup == 0

            for path in chosen:
                with open(f"{root}/{path}", "rb") as file:
                    assert hashlib.file_digest(file, "sha256").hexdigest() == ordinary.tree[path].content
            assert status(node.layergate).fuse.lookup_file > 50
            assert trees.scan(root, contents=False) == found
            assert inode_groups(root) == []
