"""The real image's whole root file system, against the same image on containerd's own overlayfs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from tests import trees
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.equality import Ordinary, assert_equal_in_three_states, unpacked
from tests.integration.harness import Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import inode_groups, root_file_system, status, without_contents
from tests.integration.node import ON_DEMAND, differences, running_node

pytestmark = pytest.mark.containerd


@pytest.fixture(scope="module")
def ordinary(file_system: str, image: RealImage, references: References) -> Iterator[Ordinary]:
    with unpacked(f"{file_system}/equal", image.optimized, references.optimized) as found:
        yield found


def test_trees_are_equal_while_layers_stream_and_afterwards(
    ordinary: Ordinary, references: References, throttle: Throttle, directory: str
) -> None:
    assert_equal_in_three_states(ordinary, references.optimized, throttle, directory)


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
    alone = "[mounter]\nneighbour_bytes = 0\n"
    with running_node(directory, config=ON_DEMAND + alone) as node:
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
            assert status(node.layergate).fuse.lookup_file > 30, "etc/ comes with passwd in part"
            assert trees.scan(root, contents=False) == found
            assert inode_groups(root) == []
