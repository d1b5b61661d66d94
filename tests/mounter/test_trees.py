"""The gate with trees beside it, on real FUSE; and when a retired mounter may end."""

from __future__ import annotations

import os
import stat

import pytest

from mounter.lowers import lazy_lowers, release_lazy_lower
from mounter.settings import MounterSettings
from mounter.syscalls import detach
from tests.estargz import dir, file, opaque, whiteout
from tests.mounter.gate_node import GateNode, drop_caches, gate_node, read, until
from tests.trees import difference, scan

__all__ = ["gate_node"]

pytestmark = pytest.mark.root

TREE = [
    dir("etc/", mode=0o750, uid=3, gid=4),
    file("etc/passwd", b"root:x:0:0", mode=0o640, uid=1, xattrs={"user.note": b"\x00\xff"}),
    dir("usr/"),
    opaque("usr"),
    file("usr/one", b"one"),
    file("usr/two", b"two"),
    whiteout("usr/gone"),
]


def trees(node: GateNode, *path: str) -> str:
    return os.path.join(node.root, "gate", "trees", *path)


def complete(node: GateNode, layer: str) -> None:
    """Make the layer complete, each of its files having been opened."""
    node.plain(layer).finish()
    node.store.mark_complete(layer)


def has_ended(node: GateNode) -> bool:
    return node.processes[-1].poll() is not None


class TestTrees:
    """/trees/<layer>/fs."""

    def test_a_tree_is_what_the_complete_layer_will_be(self, node: GateNode) -> None:
        node.start()
        layer = node.add(TREE)
        fs = trees(node, layer, "fs")
        found = os.lstat(f"{fs}/usr/gone")
        assert (stat.S_IFMT(found.st_mode), found.st_rdev) == (stat.S_IFCHR, 0)
        assert os.getxattr(f"{fs}/usr", "trusted.overlay.opaque") == b"y"
        shown = scan(fs)
        node.plain(layer).finish()
        assert difference(shown, scan(node.store.fs(layer))) == []

    def test_trees_and_gate_serve_side_by_side(self, node: GateNode) -> None:
        node.start()
        one, other = node.add(TREE), node.add([file("own", b"other"), *TREE])
        container = node.container(one)
        assert read(trees(node, other, "fs"), "own") == b"other"
        assert read(container, "usr/one") == b"one"
        assert read(trees(node, one, "fs"), "usr/one") == b"one"
        assert read(container, "usr/two") == b"two"
        assert node.mounter.status().counters.handed_over == 2

    def test_a_large_file_is_read_in_either(self, node: GateNode) -> None:
        node.start(settings=MounterSettings(large_file_seconds=1e-9))
        content = os.urandom(300_000)
        layer = node.add([file("large", content)], chunk_size=1 << 16)
        assert read(trees(node, layer, "fs"), "large") == content
        assert read(node.container(layer), "large") == content

    def test_nothing_is_listed_and_no_other_layer_is_there(self, node: GateNode) -> None:
        node.start()
        assert os.listdir(os.path.join(node.root, "gate")) == os.listdir(trees(node)) == []
        with pytest.raises(FileNotFoundError):
            os.stat(trees(node, "a" * 20))
        with pytest.raises(FileNotFoundError):
            os.stat(os.path.join(node.root, "gate", "others"))
        assert os.listxattr(trees(node)) == []

    def test_permissions_are_the_kernels_business(self, node: GateNode) -> None:
        node.start()
        layer = node.add(TREE)
        fs = os.open(trees(node, layer, "fs"), os.O_RDONLY)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    os.open("etc/passwd", os.O_RDONLY, dir_fd=fs)
                except PermissionError:
                    os.open("usr/one", os.O_RDONLY, dir_fd=fs)
                    code = 0
            finally:
                os._exit(code)
        os.close(fs)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class TestEnd:
    """A retired mounter, while a mount still has its gate."""

    def test_it_ends_when_every_layer_is_complete(self, node: GateNode) -> None:
        node.start()
        layer = node.add(TREE)
        container = node.container(layer)
        for name in ("etc/passwd", "usr/one"):
            read(container, name)
        node.mounter.retire()
        assert read(container, "usr/two") == b"two", "it serves on as long as files are missing"
        assert not has_ended(node)
        complete(node, layer)
        until(lambda: has_ended(node), "the end")
        assert read(container, "usr/one") == b"one"

    def test_it_stays_for_a_file_that_is_read_through_it(self, node: GateNode) -> None:
        node.start(settings=MounterSettings(large_file_seconds=1e-9, late_seconds=0.05))
        content = os.urandom(300_000)
        layer = node.add([file("large", content)], chunk_size=1 << 16)
        container = node.container(layer)
        with open(f"{container}/large", "rb") as opened:
            opened.read(1)
            assert read(container, "large") == content
            until(lambda: node.plain(layer).has(node.store.tree(layer).nodes["large"]), "the whole file")
            complete(node, layer)
            node.mounter.retire()
            (retired,) = node.processes
            node.start()  # which takes the time of many looks at whether the other one may end
            assert retired.poll() is None
            drop_caches()
            assert opened.read() == content[1:]
        detach(container)
        for lower in lazy_lowers(node.root):
            release_lazy_lower(node.root, lower.id)
        until(lambda: retired.poll() is not None, "the end")
