"""The plain directory: files whole or not at all, with all that a container can see of them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fetcher.errors import StoreError
from fetcher.plain import PlainLayer
from fetcher.toc import parse_toc
from fetcher.tree import build_tree
from tests import trees
from tests.estargz import (
    MTIME,
    Entry,
    blockdev,
    build,
    chardev,
    dir,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    whiteout,
)
from tests.fetcher.small_disk import fill, small_disk

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""cap_net_raw+ep, as the kernel keeps it."""


class Planted:
    """The plain directory of a hand-made layer, and the contents that its files should have."""

    def __init__(self, directory: Path, entries: Sequence[Entry], *, chunk_size: int = 4 << 20) -> None:
        directory.mkdir(exist_ok=True)
        layer = build(entries, chunk_size=chunk_size)
        tree = build_tree(parse_toc(layer.toc_json), end=len(layer.blob))
        self.plain = PlainLayer(str(directory), tree)
        self.contents = {entry.name: entry.content for entry in entries if entry.content}

    def write(self, *paths: str) -> None:
        for path in paths or self.contents:
            self.plain.write(self.plain.tree.nodes[path], self.contents[path])

    def complete(self) -> None:
        self.plain.make_directories()
        self.write()
        self.plain.finish()


def planted(directory: Path, *entries: Entry, chunk_size: int = 4 << 20) -> Planted:
    return Planted(directory / "fs", entries, chunk_size=chunk_size)


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
        assert (writing.missing, layer.plain.has(node)) == (3, False)
        writing.write(memoryview(b"con"), 0)
        assert (writing.missing, layer.plain.has(node)) == (0, False)
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
        "trusted.x": b"1",
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
    xattrs = {"com.apple.provenance": b"\x01", "user.kept": b"1"}
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


# Finishing

EVERYTHING = (
    dir("./", mode=0o751, uid=7, mtime=77),
    dir("d/", mode=0o2775, uid=1, gid=50, mtime=100, xattrs={"user.d": b"\xfe"}),
    dir("d/e/", mode=0o1777, mtime=200),
    file("d/f", b"content", mode=0o4755, uid=1000, gid=1000, mtime=300),
    file("d/empty", mode=0o600, uid=8, mtime=400),
    hardlink("d/e/link", "d/f"),
    hardlink("d/empty2", "d/empty"),
    symlink("d/s", "../../etc/passwd", uid=9, gid=10, mtime=500),
    symlink("dangling", "nowhere\n", mtime=501),
    hardlink("d/s2", "d/s"),
    chardev("d/null", 1, 3, mode=0o666, gid=5, mtime=600),
    blockdev("d/sda", 8, 0x1FFFF, mode=0o660, gid=6, mtime=601),
    fifo("d/p", mode=0o622, uid=11, mtime=700),
    whiteout("d/gone"),
    whiteout("top"),
    opaque("o/"),
    file("implied/f", b"x", mtime=800),
)


def check_everything(directory: Path) -> None:
    found = trees.scan(str(directory / "fs"))
    shown = {
        path: (one.kind, one.mode, one.uid, one.gid, one.mtime)
        for path, one in found.items()
        if one.rdev or one.kind != "character device"
    }
    assert shown == {
        ".": ("directory", 0o751, 7, 0, 77),
        "d": ("directory", 0o2775, 1, 50, 100),
        "d/e": ("directory", 0o1777, 0, 0, 200),
        "d/f": ("file", 0o4755, 1000, 1000, 300),
        "d/e/link": ("file", 0o4755, 1000, 1000, 300),
        "d/empty": ("file", 0o600, 8, 0, 400),
        "d/empty2": ("file", 0o600, 8, 0, 400),
        "d/s": ("symlink", 0o777, 9, 10, 500),
        "d/s2": ("symlink", 0o777, 9, 10, 500),
        "dangling": ("symlink", 0o777, 0, 0, 501),
        "d/null": ("character device", 0o666, 0, 5, 600),
        "d/sda": ("block device", 0o660, 0, 6, 601),
        "d/p": ("fifo", 0o622, 11, 0, 700),
        "o": ("directory", 0o755, 0, 0, 0),
        "implied": ("directory", 0o755, 0, 0, 0),
        "implied/f": ("file", 0o644, 0, 0, 800),
    }
    whiteouts = {path for path, one in found.items() if one.kind == "character device" and not one.rdev}
    assert whiteouts == {"d/gone", "top"}
    assert {one.links for one in found.values() if one.links} == {
        frozenset({"d/f", "d/e/link"}), frozenset({"d/empty", "d/empty2"}), frozenset({"d/s", "d/s2"})
    }  # fmt: skip
    assert (found["d/s"].target, found["dangling"].target) == ("../../etc/passwd", "nowhere\n")
    assert found["d/null"].rdev == os.makedev(1, 3)
    assert found["d/sda"].rdev == os.makedev(8, 0x1FFFF)
    assert found["d"].xattrs == {"user.d": b"\xfe"}
    assert (directory / "fs/d/e/link").read_bytes() == b"content"
    assert os.getxattr(directory / "fs/o", "trusted.overlay.opaque") == b"y"
    assert os.listxattr(directory / "fs/implied") == []


@pytest.mark.root
def test_finish_makes_everything_else(tmp_path: Path) -> None:
    layer = planted(tmp_path, *EVERYTHING)
    layer.complete()
    check_everything(tmp_path)


@pytest.mark.root
def test_finish_may_be_repeated(tmp_path: Path) -> None:
    layer = planted(tmp_path, *EVERYTHING)
    layer.complete()
    before = inode(tmp_path, "d/f")
    layer.complete()
    check_everything(tmp_path)
    assert inode(tmp_path, "d/f") == before


def _give_directory_its_attributes(fs: str) -> None:
    os.chown(f"{fs}/d", 1, 50)
    os.chmod(f"{fs}/d", 0o2775)


def _leave_link_to_dropped_file(fs: str) -> None:
    Path(f"{fs}/d/e/link").write_text("damaged")


# What a crash may leave of `finish`, which makes things in the order of the tree.
LEFT: dict[str, Callable[[str], None]] = {
    "nothing of it": lambda fs: None,
    "a device without attributes": lambda fs: os.mknod(
        f"{fs}/d/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3)
    ),
    "a symlink without attributes": lambda fs: os.symlink("../../etc/passwd", f"{fs}/d/s"),
    "a whiteout without attributes": lambda fs: os.mknod(f"{fs}/top", stat.S_IFCHR, 0),
    "some links": lambda fs: os.link(f"{fs}/d/f", f"{fs}/d/e/link"),
    "a link to a file that was dropped": _leave_link_to_dropped_file,
    "a directory with its attributes": _give_directory_its_attributes,
    "an opaque directory": lambda fs: os.setxattr(f"{fs}/o", "trusted.overlay.opaque", b"y"),
}


@pytest.mark.root
@pytest.mark.parametrize("left", LEFT)
def test_finish_after_a_crash_in_the_middle_of_it(tmp_path: Path, left: str) -> None:
    layer = planted(tmp_path, *EVERYTHING)
    layer.plain.make_directories()
    layer.write()
    LEFT[left](str(tmp_path / "fs"))
    layer.complete()
    check_everything(tmp_path)


@pytest.mark.root
def test_a_setgid_directory_does_not_give_its_group_away(tmp_path: Path) -> None:
    """What is made again after a crash is made in directories that have their attributes already."""
    layer = planted(
        tmp_path,
        dir("./", mode=0o2775, gid=50), dir("d/", mode=0o2775, gid=50), dir("d/e/"),
        file("d/f", b"1"), file("d/empty"), symlink("d/s", "x"), fifo("d/p"), chardev("d/c", 1, 3),
    )  # fmt: skip
    layer.complete()
    for path in ("d/f", "d/empty", "d/s"):
        os.unlink(tmp_path / "fs" / path)
    os.rmdir(tmp_path / "fs/d/e")
    layer.complete()
    found = trees.scan(str(tmp_path / "fs"))
    assert {path: one.gid for path, one in found.items()} == {
        ".": 50, "d": 50, "d/e": 0, "d/f": 0, "d/empty": 0, "d/s": 0, "d/p": 0, "d/c": 0
    }  # fmt: skip
    assert found["d/e"].mode == 0o755


@pytest.mark.root
def test_finish_does_not_pass_over_a_missing_file(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"1"), file("b", b"2"))
    layer.write("a")
    with pytest.raises(StoreError, match=r"'b'.*not been fetched") as caught:
        layer.plain.finish()
    assert caught.value.errno == errno.ENOENT


@pytest.mark.root
def test_names_that_differ_in_case_alone_are_two(tmp_path: Path) -> None:
    layer = planted(tmp_path, file("a", b"1"), file("A", b"2"), dir("b/"), dir("B/"))
    layer.complete()
    assert sorted(os.listdir(tmp_path / "fs")) == ["A", "B", "a", "b"]


def test_make_directories_may_be_repeated(tmp_path: Path) -> None:
    layer = planted(tmp_path, dir("a/b/"), file("c/d/e", b"1"))
    layer.plain.make_directories()
    layer.plain.make_directories()
    made = [os.path.relpath(path, tmp_path / "fs") for path, _, _ in os.walk(tmp_path / "fs")]
    assert sorted(made) == [".", "a", "a/b", "c", "c/d"]


# After a power loss


def test_files_that_lost_their_content_are_dropped(tmp_path: Path) -> None:
    contents = {name: name.encode() * 1000 for name in ("good", "empty", "short", "long", "zeros", "flipped")}
    layer = planted(
        tmp_path,
        *(file(name, content) for name, content in contents.items()),
        file("absent", b"1"),
        file("none"),
        chunk_size=700,
    )
    layer.write(*contents)
    fs = tmp_path / "fs"
    kept = inode(tmp_path, "good")
    os.truncate(fs / "empty", 0)
    os.truncate(fs / "short", 4999)
    os.truncate(fs / "long", 4001)
    (fs / "zeros").write_bytes(bytes(5000))
    flipped = bytearray(contents["flipped"])
    flipped[-1] ^= 1
    (fs / "flipped").write_bytes(flipped)
    assert layer.plain.drop_unverified() == 5
    assert os.listdir(fs) == ["good"]
    assert inode(tmp_path, "good") == kept
    assert layer.plain.drop_unverified() == 0


def test_large_files_are_verified_chunk_by_chunk(tmp_path: Path) -> None:
    content = os.urandom(5 << 20)
    layer = planted(tmp_path, file("a", content), chunk_size=2 << 20)
    layer.write()
    assert layer.plain.drop_unverified() == 0
    with open(tmp_path / "fs/a", "r+b") as damaged:
        damaged.seek((4 << 20) + 5)
        damaged.write(bytes([content[(4 << 20) + 5] ^ 1]))
    assert layer.plain.drop_unverified() == 1
    assert not (tmp_path / "fs/a").exists()


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
