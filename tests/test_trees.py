"""Scanning and comparing trees: every aspect that is to be compared makes a difference when it differs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trees import ROOT, difference, scan


def make(root: Path) -> None:
    (root / "directory").mkdir()
    (root / "directory/file").write_bytes(b"content")
    os.link(root / "directory/file", root / "linked")
    (root / "alone").write_bytes(b"alone")
    (root / "symlink").symlink_to("directory/file")
    os.mkfifo(root / "fifo")
    for path in ("directory/file", "alone", "fifo", "directory", "."):
        os.utime(root / path, (1_000_000_000, 1_000_000_000))
    os.utime(root / "symlink", (1_000_000_000, 1_000_000_000), follow_symlinks=False)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal trees."""
    roots = (tmp_path / "left", tmp_path / "right")
    for root in roots:
        root.mkdir()
        make(root)
    return roots


def test_equal_trees_do_not_differ(pair: tuple[Path, Path]) -> None:
    left, right = pair
    assert set(scan(str(left))) == {ROOT, "alone", "directory", "directory/file", "fifo", "linked", "symlink"}
    assert difference(scan(str(left)), scan(str(right))) == []


def rewrite(root: Path) -> None:
    (root / "alone").write_bytes(b"ALONE")
    os.utime(root / "alone", (1_000_000_000, 1_000_000_000))


def relink(root: Path) -> None:
    (root / "symlink").unlink()
    (root / "symlink").symlink_to("directory/else")
    for path in ("symlink", "."):
        os.utime(root / path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)


def unlink_and_copy(root: Path) -> None:
    (root / "linked").unlink()
    shutil.copy2(root / "directory/file", root / "linked")
    os.utime(root, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (rewrite, ["'alone': content "]),
        (lambda root: os.chmod(root / "alone", 0o4755), ["'alone': mode 0644 != 4755"]),
        (lambda root: os.utime(root / "alone", (1, 1)), ["'alone': mtime 1000000000 != 1"]),
        (lambda root: os.utime(root / "alone", ns=(0, 10**18 + 5)), []),
        (lambda root: os.utime(root / "symlink", (1, 1), follow_symlinks=False), ["'symlink': mtime "]),
        (lambda root: os.utime(root / "directory", (1, 1)), ["'directory': mtime "]),
        (lambda root: os.setxattr(root / "alone", "user.x", b"\xff"), ["'alone': xattrs {} != {'user.x': b"]),
        (lambda root: os.truncate(root / "directory/file", 7), []),
        (relink, ["'symlink': target 'directory/file' != 'directory/else'"]),
        (
            unlink_and_copy,
            [
                "'directory/file': links {directory/file, linked} != {}",
                "'linked': links {directory/file, linked} != {}",
            ],
        ),
    ],
)
def test_each_aspect_is_seen(
    pair: tuple[Path, Path], change: Callable[[Path], None], lines: list[str]
) -> None:
    left, right = pair
    change(right)
    os.utime(right / "directory/file", (1_000_000_000, 1_000_000_000))
    found = difference(scan(str(left)), scan(str(right)))
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


@pytest.mark.root
@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda root: os.chown(root / "alone", 1, 0), ["'alone': uid 0 != 1"]),
        (lambda root: os.lchown(root / "symlink", 0, 2), ["'symlink': gid 0 != 2"]),
        (lambda root: os.mknod(root / "null", stat.S_IFCHR, os.makedev(1, 3)), ["'null': only on the right"]),
        (lambda root: os.setxattr(root / "alone", "trusted.overlay.opaque", b"y"), []),
        (lambda root: os.setxattr(root / "alone", "trusted.other", b"y"), ["'alone': xattrs "]),
    ],
)
def test_each_aspect_that_takes_root_is_seen(
    pair: tuple[Path, Path], change: Callable[[Path], None], lines: list[str]
) -> None:
    left, right = pair
    change(right)
    os.utime(right, (1_000_000_000, 1_000_000_000))
    found = difference(scan(str(left)), scan(str(right)))
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


@pytest.mark.root
def test_device_numbers_are_compared(pair: tuple[Path, Path]) -> None:
    for root, minor in zip(pair, (3, 5), strict=True):
        os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        for path in ("device", "."):
            os.utime(root / path, (0, 0))
    assert difference(*(scan(str(root)) for root in pair)) == ["'device': rdev 259 != 261"]


def test_what_is_left_out_is_named(pair: tuple[Path, Path]) -> None:
    left, right = pair
    os.utime(right / "directory", (1, 1))
    shutil.rmtree(left / "directory")
    (left / "directory").mkdir()
    os.utime(left, (1_000_000_000, 1_000_000_000))
    found = difference(
        scan(str(left)), scan(str(right)), directory_mtimes=False, without=["directory/file", "linked"]
    )
    assert found == []
    assert difference(scan(str(left)), scan(str(right)), without=["directory", "linked"]) == []
    assert "'directory/file': only on the right (file)" in difference(scan(str(left)), scan(str(right)))


def test_names_that_are_no_utf8_are_found(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe", "wb") as file:
        file.write(b"x")
    assert set(scan(str(tmp_path))) == {ROOT, os.fsdecode(b"\xff\xfe")}


def test_contents_are_not_opened_if_not_wanted(pair: tuple[Path, Path]) -> None:
    left, right = pair
    rewrite(right)
    assert difference(scan(str(left), contents=False), scan(str(right), contents=False)) == []
