"""Clients of a registry that is not to be trusted, and a directory to mount in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fetcher.conftest import Clients
from tests.mounter.conftest import scratch

__all__ = ["make_client", "scratch"]


@pytest.fixture
def make_client(tmp_path: Path) -> Clients:
    return Clients(tmp_path / "config.json")
