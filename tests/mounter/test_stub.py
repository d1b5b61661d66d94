"""The fallback on real FUSE: a layer's whole tree, as an ordinary overlay's lower directory."""

from __future__ import annotations

import os
import random
import stat

import pytest

from mounter.probe import Mode
from mounter.settings import MounterSettings
from tests.estargz import chardev, dir, fifo, file, hardlink, opaque, symlink, whiteout
from tests.mounter.gate_node import GateNode, drop_caches, gate_node, read, until
from tests.trees import difference, scan

__all__ = ["gate_node"]

pytestmark = pytest.mark.root

TREE = [
    dir("etc/", mode=0o750, uid=3, gid=4, mtime=1_500_000_000),
    file(
        "etc/passwd", b"root:x:0:0", mode=0o640, uid=1, xattrs={"user.note": b"\x00\xff", "security.x": b"1"}
    ),
    file("etc/empty"),
    symlink("etc/link", "../usr/päth"),
    hardlink("etc/shadow", "etc/passwd"),
    dir("usr/"),
    file("usr/päth", b"umlauts"),
    file("usr/suid", b"#!", mode=0o4755),
    chardev("usr/null", 1, 3, mode=0o666),
    fifo("usr/pipe"),
]


def lower(node: GateNode, layer: str) -> str:
    return os.path.join(node.root, "gate", layer, "fs")


def test_the_tree_is_what_the_complete_layer_will_be(node: GateNode) -> None:
    node.start(Mode.STUB)
    layer = node.add(TREE)
    shown = scan(lower(node, layer))
    node.plain(layer).finish()
    plain = scan(node.store.fs(layer))
    assert difference(shown, plain) == []
    assert shown["etc/passwd"].links == {"etc/passwd", "etc/shadow"}
    assert len(node.requests()) == 3, "one for each file with bytes"


def test_metadata_fetches_nothing(node: GateNode) -> None:
    node.start(Mode.STUB)
    layer = node.add(TREE)
    root = node.container_on(lower(node, layer))
    assert "päth" in os.listdir(os.path.join(root, "usr"))
    assert os.readlink(os.path.join(root, "etc/link")) == "../usr/päth"
    assert os.stat(os.path.join(root, "etc/passwd")).st_size == 10
    with pytest.raises(FileNotFoundError):
        os.stat(os.path.join(root, "etc/nothing"))
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(os.path.join(root, "etc/passwd"), "user.other")
    assert node.requests() == []


def test_whiteouts_and_opaque_directories_hide_what_is_below(node: GateNode) -> None:
    node.start(Mode.STUB)
    bottom = node.add([file("a/gone", b"1"), file("a/kept", b"2"), file("b/hidden", b"3")])
    top = node.add([whiteout("a/gone"), dir("b/"), opaque("b"), file("b/new", b"4")])
    mode = os.lstat(os.path.join(lower(node, top), "a/gone"))
    assert stat.S_ISCHR(mode.st_mode)
    assert mode.st_rdev == 0
    root = node.container_on(lower(node, top), lower(node, bottom))
    assert os.listdir(os.path.join(root, "a")) == ["kept"]
    assert os.listdir(os.path.join(root, "b")) == ["new"]
    assert read(root, "a/kept") == b"2"


def test_a_container_may_change_what_it_sees(node: GateNode) -> None:
    node.start(Mode.STUB)
    layer = node.add(TREE)
    root = node.container_on(lower(node, layer))
    path = os.path.join(root, "etc/passwd")
    os.chmod(path, 0o600)
    with open(path, "ab") as file:
        file.write(b"\nmore")
    os.rename(os.path.join(root, "usr/päth"), os.path.join(root, "usr/moved"))
    assert read(path) == b"root:x:0:0\nmore"
    assert read(root, "usr/moved") == b"umlauts"
    assert read(node.plain_path(layer, "etc/passwd")) == b"root:x:0:0"


def test_files_are_fetched_once_and_read_from_plain(node: GateNode) -> None:
    node.start(Mode.STUB)
    content = random.Random(1).randbytes(700_000)
    layer = node.add([file("data", content)], chunk_size=65536)
    root = node.container_on(lower(node, layer))
    assert read(root, "data") == content
    assert read(node.plain_path(layer, "data")) == content
    drop_caches()
    node.fault("fail")
    assert read(root, "data") == content
    assert len(node.requests()) == 1


def test_a_large_file_comes_by_chunks(node: GateNode) -> None:
    node.start(Mode.STUB, MounterSettings(assumed_bandwidth=1))
    content = random.Random(1).randbytes(1_000_000)
    layer = node.add([file("large", content)], chunk_size=65536)
    root = node.container_on(lower(node, layer))
    with open(os.path.join(root, "large"), "rb", buffering=0) as large:
        large.seek(900_000)
        assert large.read(1000) == content[900_000:901_000]
        assert not os.path.exists(node.plain_path(layer, "large"))
        large.seek(0)
        assert b"".join(iter(lambda: large.read(65536), b"")) == content
    until(lambda: os.path.exists(node.plain_path(layer, "large")), "the plain file")
    assert read(node.plain_path(layer, "large")) == content


def test_a_failing_source_gives_eio_and_the_next_open_works_when_it_does(node: GateNode) -> None:
    node.start(Mode.STUB, MounterSettings(wait_seconds=0.5))
    layer = node.add(TREE)
    root = node.container_on(lower(node, layer))
    node.fault("fail")
    with pytest.raises(OSError, match="Input/output error"):
        read(root, "etc/passwd")
    node.mend("fail")
    assert read(root, "etc/passwd") == b"root:x:0:0"


def test_trees_are_given_up_and_come_back_with_the_same_numbers(node: GateNode) -> None:
    node.start(Mode.STUB, MounterSettings(idle_seconds=0.1, late_seconds=0.1))
    layer = node.add(TREE)
    before = os.stat(os.path.join(lower(node, layer), "etc/passwd")).st_ino
    node.store.mark_complete(layer)
    until(lambda: node.mounter.status().loaded_layers == 0, "the tree to be given up")
    drop_caches()
    assert os.stat(os.path.join(lower(node, layer), "etc/passwd")).st_ino == before
    assert node.mounter.status().loaded_layers == 1
