"""Parsing mountinfo."""

from __future__ import annotations

import os

import pytest

from mounter.mountinfo import Mount, below, is_mount_point, mounts_below, parse_mountinfo, read_mounts
from mounter.syscalls import mount_tmpfs

LINES = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
90 27 0:50 / /data/with\040space\134and\011tab ro,nosuid shared:7 master:1 - overlay none rw,lowerdir=/a\134:b
91 27 0:51 /sub /data/gr\303\274n rw,relatime - tmpfs tmpfs rw
"""


def test_every_field() -> None:
    assert parse_mountinfo(LINES)[2] == Mount(
        id=90,
        parent=27,
        device=(0, 50),
        root="/",
        target="/data/with space\\and\ttab",
        options=("ro", "nosuid"),
        shared=True,
        fstype="overlay",
        source="none",
        super_options=("rw", "lowerdir=/a\\:b"),
    )


def test_escapes_are_bytes_of_the_path() -> None:
    last = parse_mountinfo(LINES)[3]
    assert last.target == "/data/grün"
    assert last.root == "/sub"
    assert not last.shared


def test_read_only_by_the_mount_or_by_its_file_system() -> None:
    lines = (
        b"1 0 0:1 / /a ro - tmpfs t rw\n2 0 0:2 / /b rw - tmpfs t ro\n3 0 0:3 / /c rw,relatime - tmpfs t rw\n"
    )
    assert [mount.read_only for mount in parse_mountinfo(lines)] == [True, True, False]


def test_a_source_may_be_empty() -> None:
    (found,) = parse_mountinfo(b"1 0 0:1 / /a rw - tmpfs  rw\n")
    assert found.source == ""


@pytest.mark.parametrize("line", [b"nonsense", b"1 0 0:1 / /a rw tmpfs t rw", b"1 0 x / /a rw - tmpfs t rw"])
def test_anything_else_is_refused_and_shown(line: bytes) -> None:
    with pytest.raises(ValueError, match=line.decode()):
        parse_mountinfo(line)


def test_below_is_by_path_components() -> None:
    lines = b"".join(
        b"%d 0 0:%d / %s rw - tmpfs t rw\n" % (number, number, path)
        for number, path in enumerate([b"/data", b"/data/a", b"/database", b"/", b"/data/a/b"])
    )
    mounts = parse_mountinfo(lines)
    assert [mount.target for mount in below(mounts, "/data")] == ["/data", "/data/a", "/data/a/b"]
    assert [mount.target for mount in below(mounts, "/data/a")] == ["/data/a", "/data/a/b"]
    assert below(mounts, "/data/x") == []
    assert len(below(mounts, "/")) == 5


def test_the_systems_own_file_can_be_parsed() -> None:
    assert any(mount.target == "/proc" for mount in read_mounts())


def test_what_is_not_there_is_no_mount_point(scratch: str) -> None:
    assert not is_mount_point(os.path.join(scratch, "missing"))
    assert not is_mount_point(scratch)


@pytest.mark.root
def test_a_mount_is_found_through_a_symlink(scratch: str) -> None:
    target, link = os.path.join(scratch, "target"), os.path.join(scratch, "link")
    os.mkdir(target)
    os.symlink(target, link)
    mount_tmpfs(target, options={})
    assert [mount.target for mount in mounts_below(link)] == [target]
    assert is_mount_point(target)
