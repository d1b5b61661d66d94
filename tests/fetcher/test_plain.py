"""Files of a plain directory: whole or not at all, with all that a container can see of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fetcher.errors import StoreError
from tests import trees
from tests.estargz import (
    MTIME,
    build,
    dir,
    fifo,
    file,
    symlink,
)
from tests.fetcher.planted import planted
from tests.fetcher.small_disk import fill, small_disk

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_raw+ep, as the kernel keeps it."""


def inode(directory: Path, path: str) -> int:
    return os.lstat(directory / "fs" / path).st_ino


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# One file


def test_nobody_sees_a_file_before_its_commit(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"content"))
    node = layer.plain.tree.nodes["a"]
    writing = layer.plain.create(node)
    try:
        writing.write(b"tent", 3)
        assert not layer.plain.has(node)
        writing.write(memoryview(b"con"), 0)
        assert not layer.plain.has(node)
        assert os.listdir(tmp_path / "fs") == []
        assert writing.commit()
        assert layer.plain.has(node)
    finally:
        writing.close()
    assert (tmp_path / "fs/a").read_bytes() == b"content"


def test_what_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"content"))
    before = open_files()
    writing = layer.plain.create(layer.plain.tree.nodes["a"])
    writing.write(b"con", 0)
    writing.close()
    assert open_files() == before
    assert os.listdir(tmp_path / "fs") == []


@pytest.mark.root
def test_first_writer_wins_and_its_file_is_never_replaced(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"content", mode=0o640))
    node = layer.plain.tree.nodes["a"]
    first, second = layer.plain.create(node), layer.plain.create(node)
    second.write(b"content", 0)
    first.write(b"content", 0)
    assert second.commit()
    before = os.lstat(tmp_path / "fs/a")
    with open(tmp_path / "fs/a", "rb") as reader:
        assert not first.commit()
        assert not layer.plain.write(node, b"content")
        first.close()
        second.close()
        layer.plain.finish()
        after = os.lstat(tmp_path / "fs/a")
        assert (before.st_ino, before.st_ctime_ns) == (after.st_ino, after.st_ctime_ns)
        assert os.fstat(reader.fileno()).st_nlink == 1
        assert reader.read() == b"content"


def test_writers_in_other_processes(tmp_path: Path) -> None:
    count = 200
    entries = [file(f"d{number % 7}/f{number}", b"%d" % number) for number in range(count)]
    layer = planted(tmp_path, *entries)
    (tmp_path / "toc").write_bytes(build(entries).toc_json)
    program = (
        "import sys\n"
        "from fetcher.plain import PlainLayer\n"
        "from fetcher.toc import parse_toc\n"
        "from fetcher.tree import build_tree\n"
        "tree = build_tree(parse_toc(open(sys.argv[2], 'rb').read()), end=1 << 40)\n"
        "plain = PlainLayer(sys.argv[1], tree)\n"
        "sys.stdin.readline()\n"
        "print(sum(plain.write(node, node.path.split('f')[1].encode()) for node in tree.regular_files()))\n"
    )
    command = [sys.executable, "-Wignore", "-c", program, str(tmp_path / "fs"), str(tmp_path / "toc")]
    writers = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": os.getcwd()},
        )
        for _ in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        written = [int(writer.communicate()[0]) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    # Directories are missing at first: each makes them, and neither fails. Every file has one writer.
    assert sum(written) == count
    assert layer.plain.drop_unverified() == 0
    for path, content in layer.contents.items():
        assert (tmp_path / "fs" / path).read_bytes() == content


def test_parents_are_made_where_they_are_missing(tmp_path: Path) -> None:
    path = "/".join(["d"] * 255) + "/f"
    layer = planted(tmp_path, file(path, b"deep"))
    layer.write()
    assert (tmp_path / "fs" / path).read_bytes() == b"deep"


def test_layer_that_is_removed_meanwhile_stays_removed(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a/b", b"content"))
    writing = layer.plain.create(layer.plain.tree.nodes["a/b"])
    try:
        writing.write(b"content", 0)
        os.rmdir(tmp_path / "fs")
        with pytest.raises(StoreError) as caught:
            writing.commit()
    finally:
        writing.close()
    assert caught.value.errno == errno.ENOENT
    assert not (tmp_path / "fs").exists()
    with pytest.raises(StoreError, match="a/b"):
        layer.plain.create(layer.plain.tree.nodes["a/b"])


@pytest.mark.parametrize("name", ["a\nb", "é" * 127, "\udcff\udcfe", " ", "-rf", "*", "a" * 255])
def test_odd_names(tmp_path: Path, name: str) -> None:
    layer = planted(tmp_path, file("a/b", b"content"))
    node = layer.plain.tree.nodes["a/b"]
    node.path = f"{name}/{name}"
    layer.plain.write(node, b"content")
    assert os.listdir(os.fsencode(tmp_path / "fs")) == [os.fsencode(name)]
    assert layer.plain.has(node)


# Attributes


@pytest.mark.root
def test_attributes_of_files(tmp_path: Path) -> None:
    xattrs = {
        "security.capability": CAPABILITY,
        "user.raw": b"\xff\x00\xfe",
        "user.empty": b"",
    }
    layer = planted(
        tmp_path,
        file("suid", b"1", mode=0o4755, uid=1000, gid=1001, mtime=123),
        file("sgid", b"2", mode=0o2711, gid=4_000_000_000),
        file("sticky", b"3", mode=0o1644),
        file("none", b"4", mode=0),
        file("caps", b"5", mode=0o6755, uid=1000, xattrs=xattrs),
        file("old", b"6", mtime=-1_000_000),
        file("empty", mode=0o4700, uid=5, mtime=9, xattrs={"security.capability": CAPABILITY}),
    )
    layer.complete()
    found = trees.scan(str(tmp_path / "fs"))
    assert {name: (one.mode, one.uid, one.gid, one.mtime) for name, one in found.items() if name != "."} == {
        "suid": (0o4755, 1000, 1001, 123),
        "sgid": (0o2711, 0, 4_000_000_000, MTIME),
        "sticky": (0o1644, 0, 0, MTIME),
        "none": (0, 0, 0, MTIME),
        "caps": (0o6755, 1000, 0, MTIME),
        "old": (0o644, 0, 0, -1_000_000),
        "empty": (0o4700, 5, 0, 9),
    }
    assert found["caps"].xattrs == xattrs
    assert found["empty"].xattrs == {"security.capability": CAPABILITY}
    assert not any(found[name].xattrs for name in ("suid", "sgid", "sticky", "none", "old"))


@pytest.mark.root
def test_attributes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        layer = planted(
            tmp_path, dir("d/", mode=0o777), file("d/f", b"1", mode=0o666), fifo("d/p", mode=0o622)
        )
        layer.complete()
    finally:
        os.umask(before)
    found = trees.scan(str(tmp_path / "fs"))
    assert [found[path].mode for path in ("d", "d/f", "d/p")] == [0o777, 0o666, 0o622]


@pytest.mark.root
def test_xattr_that_this_system_has_no_place_for(tmp_path: Path) -> None:
    xattrs = {"com.apple.provenance": b"\x01", "system.unheard_of": b"1", "user.kept": b"1"}
    layer = planted(
        tmp_path, dir("d/", xattrs=xattrs), file("d/f", b"1", xattrs=xattrs), file("d/e", xattrs=xattrs)
    )
    layer.complete()
    found = trees.scan(str(tmp_path / "fs"))
    assert [found[path].xattrs for path in ("d", "d/f", "d/e")] == [{"user.kept": b"1"}] * 3


@pytest.mark.root
def test_xattr_that_the_disk_refuses(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"1", xattrs={"user.huge": bytes(1 << 20)}))
    with pytest.raises(StoreError, match="'a'") as caught:
        layer.write()
    assert caught.value.errno in (errno.E2BIG, errno.ENOSPC)
    assert os.listdir(tmp_path / "fs") == []


# The disk refuses


@pytest.mark.root
def test_full_disk(tmp_path: Path) -> None:
    entries = [
        file("small", b"1"),
        file("large", os.urandom(100 << 10)),
        file("d/empty"),
        symlink("s", "x" * 4000),
    ]
    with small_disk(str(tmp_path / "fs"), kilobytes=64):
        layer = planted(tmp_path, *entries)
        layer.plain.make_directories()
        layer.write("small")
        before = open_files()
        with pytest.raises(StoreError, match="'large'") as caught:
            layer.write("large")
        assert caught.value.errno == errno.ENOSPC
        assert open_files() == before
        assert sorted(os.listdir(tmp_path / "fs")) == ["d", "small"]
        fill(str(tmp_path / "fs"))
        with pytest.raises(StoreError):
            layer.plain.finish()
        assert (tmp_path / "fs/small").read_bytes() == b"1"
        os.unlink(tmp_path / "fs/ballast")
        # What did not fit may still fit a larger disk.
        subprocess.run(["mount", "-o", "remount,size=1m", str(tmp_path / "fs")], check=True)
        layer.complete()
        assert (tmp_path / "fs/large").read_bytes() == layer.contents["large"]


@pytest.mark.root
def test_disk_without_inodes(tmp_path: Path) -> None:
    with small_disk(str(tmp_path / "fs"), kilobytes=64):
        subprocess.run(["mount", "-o", "remount,nr_inodes=4", str(tmp_path / "fs")], check=True)
        layer = planted(tmp_path, *(file(f"f{number}", b"1") for number in range(9)))
        with pytest.raises(StoreError) as caught:
            layer.write()
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(StoreError):
            planted(tmp_path, *(dir(f"d{number}/") for number in range(9))).plain.make_directories()


def test_directory_that_is_none(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"1"))
    os.rmdir(tmp_path / "fs")
    (tmp_path / "fs").write_bytes(b"")
    for attempt in (layer.write, layer.plain.finish):
        with pytest.raises(StoreError):
            attempt()
    assert not layer.plain.has(layer.plain.tree.nodes["a"])
