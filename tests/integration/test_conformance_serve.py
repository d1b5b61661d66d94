"""containerd's conformance suite, as in tests/snapshotter, against the socket of a real `layergate serve`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.harness import Layergate
from tests.snapshotter import test_conformance
from tests.snapshotter.conftest import client, work
from tests.snapshotter.snapshots_client import SnapshotsClient

__all__ = ["client", "work"]

pytestmark = pytest.mark.root

# The same cases under this module, where they find this module's socket.
globals().update({name: case for name, case in vars(test_conformance).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def serve(file_system: str) -> Iterator[Layergate]:
    with Layergate(f"{file_system}/conformance") as serving:
        yield serving


@pytest.fixture
def snapshots_socket(serve: Layergate) -> Iterator[str]:
    """The socket; afterwards every snapshot is removed, and has to be gone from the disk too."""
    yield serve.socket
    with SnapshotsClient(serve.socket) as cleaner:
        for info in reversed(list(cleaner.walk())):
            cleaner.remove(info.name)
        cleaner.cleanup()
    assert os.listdir(f"{serve.root}/snapshots") == []


def test_every_case_is_here() -> None:
    """So that a case which is renamed or moved is not lost without a word."""
    assert len([name for name in globals() if name.startswith("test_")]) > 20
