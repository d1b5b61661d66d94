"""Mounts by hand of odd images: each whole tree against the one that containerd unpacks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest

from snapshotter.containerd.labels import chain_ids
from tests import oci, trees
from tests.estargz import build, dir, file, opaque, symlink, whiteout
from tests.integration.harness import Containerd, Registry
from tests.integration.lazy import root_file_system
from tests.integration.manual import SLOW, ManualNode
from tests.integration.node import differences
from tests.integration.test_odd_layers import ODD, Odd

pytestmark = pytest.mark.containerd

TAKEN_OVER: Final = Odd(
    [
        build(
            [
                dir("./", mode=0o711, uid=7, xattrs={"user.root": b"r"}),
                dir("a/", mode=0o1777, uid=1, gid=2, xattrs={"user.a": b"b", "security.note": b"s"}),
                file("a/x", b"x"),
                dir("a/b/", mode=0o700, uid=3, mtime=1_500_000_000),
                dir("a/b/c/", mode=0o2755, gid=9),
                file("a/b/c/d", b"d"),
                dir("gone/", mode=0o700),
                file("gone/x", b"x"),
                dir("opaque/", mode=0o700),
                dir("opaque/in/", mode=0o750, uid=4),
                file("opaque/in/hidden", b"hidden"),
                dir("real/", mode=0o751, uid=5),
                dir("real/deep/", mode=0o705),
                symlink("link", "real"),
                symlink("upwards", "a/../../real/deep"),
                file("replaced", b"a file"),
                dir("own/", mode=0o700, uid=6),
                dir("covered/", mode=0o700),
                dir("covered/in/", mode=0o700),
            ]
        ),
        build([file("a/b/y", b"y"), whiteout("gone"), dir("opaque/", mode=0o711), opaque("opaque")]),
        build(
            [
                file("a/b/c/z", b"z"),
                whiteout("a/b/c/d"),
                file("gone/again", b"again"),
                file("opaque/in/shown", b"shown"),
                file("link/x", b"x"),
                file("upwards/x", b"x"),
                file("replaced/x", b"x"),
                dir("own/", mode=0o1700, uid=8),
                file("own/x", b"x"),
                file("covered/in/x", b"x"),
                file("new/x", b"x"),
            ]
        ),
        build([file("own/y", b"y"), file("covered", b"a file in its place"), file("new/y", b"y")]),
    ],
    implied=["a", "a/b", "a/b/c", "gone", "opaque", "opaque/in", "link", "upwards", "replaced", "own", "new"],
)
"""Directories without an entry, on all that they could stand on."""

IMAGES: Final = {
    "taken over": TAKEN_OVER,
    **{name: ODD[name] for name in ("implied parents in place of others", "modes")},
}


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory, config=SLOW) as node:
        yield node


@pytest.mark.parametrize("name", IMAGES)
def test_a_tree_is_the_one_that_containerd_unpacks(
    name: str, node: ManualNode, registry: Registry, ordinary_containerd: Containerd
) -> None:
    odd = IMAGES[name]
    reference = oci.push(registry.host, f"manual/{name.replace(' ', '-')}", odd.image)
    ordinary_containerd.pull(reference)
    chain = chain_ids([layer.diff_id for layer in odd.image.layers])[-1]
    with root_file_system(
        ordinary_containerd, chain, f"{node.directory}/unpacked", snapshotter="overlayfs"
    ) as root:
        unpacked = trees.scan(root)
    target, upper = node.mountpoint(), f"{node.directory}/upper"
    assert node.run("mount", "--plain-http", "--rw", upper, reference, target).errors == ""
    assert node.state(target).state == "lazy"
    assert differences(trees.scan(target), unpacked, implied=odd.implied) == []
    for path in odd.implied:
        with open(f"{target}/{path}/written", "wb") as file:
            file.write(b"and its directory copied up")
        os.unlink(f"{target}/{path}/written")
    node.configure("")
    node.until_native(target)
    assert differences(trees.scan(target), unpacked, implied=odd.implied) == []
    node.run("umount", target)

    assert node.run("mount", "--plain-http", reference, target).errors == ""
    assert node.state(target).state == "native"
    assert differences(trees.scan(target), unpacked, implied=odd.implied) == []
    node.run("umount", target)
    assert os.listdir(f"{node.root}/mounts") == ["lock"]
