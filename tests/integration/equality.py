"""A pulled image's whole root file system against the same one on containerd's own overlayfs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests import trees
from tests.integration.harness import Containerd, Throttle
from tests.integration.lazy import (
    Layout,
    by_way_of,
    incomplete,
    inode_groups,
    read_layout,
    root_file_system,
    status,
    until_complete,
    until_half_is_here,
    until_released,
)
from tests.integration.node import differences, running_node
from tests.trees import Entry

_QUICK = "[lazy]\nmount_seconds = 1\n"


@dataclass(frozen=True, slots=True)
class Ordinary:
    """The image as containerd unpacks it."""

    layout: Layout
    tree: dict[str, Entry]


@contextmanager
def unpacked(directory: str, layout: str, reference: str) -> Iterator[Ordinary]:
    """The image of an OCI layout, pulled from a registry by a containerd of its own below `directory`."""
    found = read_layout(layout)
    with Containerd(directory) as containerd:
        containerd.pull(reference)
        with root_file_system(
            containerd, found.chain_id, f"{directory}/tree", snapshotter="overlayfs"
        ) as root:
            assert inode_groups(root) == []
            yield Ordinary(found, trees.scan(root))


def assert_equal_in_three_states(
    ordinary: Ordinary, reference: str, throttle: Throttle, directory: str
) -> None:
    """Pull an image lazily by way of a link, and compare it with the ordinary one.

    While half of it is not here yet, through the same mount when it is, and through a new mount, which is
    native.
    """
    top = ordinary.layout.chain_id
    throttle.rate = 3_000_000
    with running_node(directory, config=_QUICK) as node:
        node.pull(by_way_of(throttle, reference))
        with root_file_system(node.containerd, top, f"{directory}/lazy") as lazy:
            assert len(incomplete(node.layergate)) == len(ordinary.layout.layers)
            throttle.rate = 10_000_000
            until_half_is_here(node.layergate, ordinary.layout)
            throttle.rate = 6_000_000
            assert differences(trees.scan(lazy), ordinary.tree) == []
            fetched = status(node.layergate).fetched_bytes
            assert fetched.on_demand > 0
            assert fetched.background > 0

            throttle.rate = 0
            until_complete(node.layergate)
            fetched = status(node.layergate).fetched_bytes
            everything = fetched.prefetch + fetched.on_demand + fetched.background
            assert everything < 1.15 * ordinary.layout.size, "hardly anything comes twice"
            assert differences(trees.scan(lazy), ordinary.tree) == []
            assert inode_groups(lazy) == []

            until_released(node.layergate)
            with root_file_system(node.containerd, top, f"{directory}/native") as native:
                assert differences(trees.scan(native), ordinary.tree) == []
                assert inode_groups(native) == []
