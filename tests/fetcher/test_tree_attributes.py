"""Owners, times, devices, symlinks and xattrs of a layer's nodes."""

from __future__ import annotations

import pytest

from fetcher.nodes import Kind
from tests.fetcher.toc_entries import entry, refused, reg, tree


def test_attributes() -> None:
    layer = tree(
        reg(
            "a",
            mode=0o106755,
            uid=1000,
            gid=0xFFFFFFFE,
            modtime="2024-05-01T10:00:00Z",
            xattrs={"user.a": b"\xff"},
        )
    )
    node = layer.nodes["a"]
    assert (node.mode, node.uid, node.gid, node.mtime) == (0o6755, 1000, 0xFFFFFFFE, 1714557600)
    assert node.xattrs == {"user.a": b"\xff"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2024-05-01T12:00:00+02:00", 1714557600),
        ("2024-05-01T10:00:00.999999Z", 1714557600),
        ("1960-01-01T00:00:00Z", -315619200),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("9999-12-31T23:59:59Z", 253402300799),
    ],
)
def test_modification_times(text: str, seconds: int) -> None:
    assert tree(entry("a", modtime=text)).nodes["a"].mtime == seconds


@pytest.mark.parametrize(
    "text",
    ["yesterday", "2024-05-01", "2024-05-01T10:00:00", "2024-13-01T10:00:00Z", "1714557600", "x" * 9000,
     "2024-05-01T10:00:60Z", "10000-01-01T00:00:00Z"],
)  # fmt: skip
def test_modification_times_that_are_none(text: str) -> None:
    refused("not RFC 3339", entry("a", modtime=text))


@pytest.mark.parametrize("owner", [-1, 0xFFFFFFFF, 1 << 40])
def test_impossible_owners(owner: int) -> None:
    refused("uid", entry("a", uid=owner))
    refused("gid", entry("a", gid=owner))


def test_devices() -> None:
    layer = tree(entry("c", "char", dev_major=0xFFF, dev_minor=0xFFFFF), entry("b", "block"))
    assert (layer.nodes["c"].major, layer.nodes["c"].minor) == (0xFFF, 0xFFFFF)
    assert layer.nodes["b"].kind is Kind.BLOCK
    refused("device major", entry("c", "char", dev_major=0x1000))
    refused("device minor", entry("c", "block", dev_minor=-1))


def test_symlinks() -> None:
    for target in ("x", "/etc/passwd", "../../../../etc", "a\nb", "é" * 2000, "\udcff", "."):
        assert tree(entry("a", "symlink", link_name=target)).nodes["a"].target == target
    for target in ("", "a\0b", "é" * 2048):
        refused("invalid target", entry("a", "symlink", link_name=target))


@pytest.mark.parametrize(
    "name",
    ["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.",
     "user.overlay.opaque", "user.overlay.x"],
)  # fmt: skip
@pytest.mark.parametrize("type", ["dir", "reg", "symlink", "fifo", "char", "block"])
def test_xattrs_that_steer_overlayfs(name: str, type: str) -> None:
    refused(
        "steer overlayfs", entry("a", type, link_name="x", dev_major=1, xattrs={"user.ok": b"", name: b"y"})
    )


@pytest.mark.parametrize(
    "name", ["", "user.", "security.", "user.a\0b", "user." + "a" * 251, "user." + "é" * 126]
)
def test_xattrs_with_impossible_names(name: str) -> None:
    refused("invalid name", entry("a", xattrs={name: b""}))


def test_xattrs_that_only_look_alike() -> None:
    names = ["user.overlayfs", "security.capability", "user." + "a" * 250]
    assert list(tree(entry("a", xattrs=dict.fromkeys(names, b""))).nodes["a"].xattrs) == names


def test_xattrs_that_containerd_does_not_unpack_are_left_out() -> None:
    xattrs = {"com.apple.provenance": b"1", "user.a": b"2", "users.b": b"3", "user": b"4", "trusted.x": b"5"}
    assert tree(entry("a", xattrs=xattrs)).nodes["a"].xattrs == {"user.a": b"2"}


def test_user_xattrs_live_on_files_and_directories_alone() -> None:
    xattrs = {"user.a": b"1", "security.b": b"2"}
    for type in ("symlink", "fifo", "char", "block"):
        node = tree(entry("a", type, link_name="x", dev_major=1, xattrs=dict(xattrs))).nodes["a"]
        assert node.xattrs == {"security.b": b"2"}
    assert tree(entry("a", xattrs=dict(xattrs))).nodes["a"].xattrs == xattrs
