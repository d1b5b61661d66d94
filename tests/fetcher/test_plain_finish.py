"""The end of a plain directory: all that is no file with content, again after a crash, and power losses."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fetcher.errors import StoreError
from tests import trees
from tests.estargz import (
    blockdev,
    chardev,
    dir,
    fifo,
    file,
    hardlink,
    opaque,
    symlink,
    whiteout,
)
from tests.fetcher.planted import planted


def inode(directory: Path, path: str) -> int:
    return os.lstat(directory / "fs" / path).st_ino


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
