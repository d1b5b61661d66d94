"""A snapshots service to talk to. Override `snapshots_socket` to run the same tests on another server."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.lowers import NoLowers
from tests.snapshotter.serving import serving
from tests.snapshotter.snapshots_client import SnapshotsClient, unmount_below


@pytest.fixture
def socket_directory() -> Iterator[str]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lg-") as directory:
        yield directory


@pytest.fixture
def snapshots_root(tmp_path: Path) -> Path:
    """The snapshotter's own directory."""
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    return root


@pytest.fixture
def snapshots_socket(snapshots_root: Path, socket_directory: str) -> Iterator[str]:
    """The socket of a running server with ordinary snapshots only."""
    path = f"{socket_directory}/s"
    with serving(snapshots_root, path, NoLowers()):
        yield path


@pytest.fixture
def client(snapshots_socket: str) -> Iterator[SnapshotsClient]:
    with SnapshotsClient(snapshots_socket) as client:
        yield client


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """Where tests mount; whatever is still mounted at the end is unmounted."""
    work = tmp_path / "work"
    work.mkdir()
    yield work
    unmount_below(str(tmp_path))
