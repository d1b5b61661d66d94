"""Finding containerd: by its socket, by its binary, by its process."""

from __future__ import annotations

import os
import stat

import pytest

from snapshotter.containerd_host import find_containerd

OURS, THEIRS = "mnt:[1]", "mnt:[2]"


def _proc(base: str, namespace: str | None) -> str:
    """A /proc with our own process and, unless `namespace` is None, containerd's."""
    for pid, comm, mounts in (("self", "python3", OURS), ("7", "sh", OURS), ("8", "containerd", namespace)):
        if mounts is not None:
            os.makedirs(os.path.join(base, pid, "ns"))
            os.symlink(mounts, os.path.join(base, pid, "ns", "mnt"))
            with open(os.path.join(base, pid, "comm"), "w") as file:
                file.write(f"{comm}\n")
    return base


def _binary(base: str, output: str) -> str:
    path = os.path.join(base, "containerd")
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\necho '{output}'\n")
    os.chmod(path, stat.S_IRWXU)
    return path


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", "1.6.20~ds1"),
        ("containerd github.com/containerd/containerd/v2 v2.1.9 abcdef", "2.1.9"),
        ("something else", None),
    ],
)
def test_the_binarys_version(tmp_path: os.PathLike[str], output: str, version: str | None) -> None:
    base = os.fspath(tmp_path)
    found = find_containerd(os.path.join(base, "no.sock"), _binary(base, output), _proc(base, None))
    assert found.version == version


def test_neither_running_nor_installed(tmp_path: os.PathLike[str]) -> None:
    base = os.fspath(tmp_path)
    socket = os.path.join(base, "no.sock")
    found = find_containerd(socket, os.path.join(base, "none"), _proc(base, None))
    assert found.version is None
    assert found.same_namespace is None
    assert socket in found.detail


@pytest.mark.parametrize(("namespace", "same"), [(OURS, True), (THEIRS, False), (None, None)])
def test_whether_it_sees_our_mounts(
    tmp_path: os.PathLike[str], namespace: str | None, same: bool | None
) -> None:
    base = os.fspath(tmp_path)
    found = find_containerd(os.path.join(base, "no.sock"), "/none", _proc(base, namespace))
    assert found.same_namespace is same


def test_a_socket_that_nobody_listens_on_falls_back_to_the_binary(tmp_path: os.PathLike[str]) -> None:
    base = os.fspath(tmp_path)
    socket = os.path.join(base, "dead.sock")
    with open(socket, "wb"):
        pass
    found = find_containerd(socket, _binary(base, "containerd x 2.0.1 y"), _proc(base, None))
    assert found.version == "2.0.1"
    assert "not running" in found.detail
