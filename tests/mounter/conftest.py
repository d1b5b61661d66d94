"""A directory to mount in, and a node of lazy layers in it; nothing stays mounted, whatever a test does."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mounter.meta import MetaForm
from mounter.mountinfo import mounts_below
from mounter.syscalls import detach
from tests.mounter.mounts import LazyNode


@contextmanager
def scratch_directory() -> Iterator[str]:
    """A directory that goes at the end, with what is mounted below it."""
    directory = os.path.realpath(tempfile.mkdtemp(prefix="layergate-test-"))
    try:
        yield directory
    finally:
        for mount in reversed(mounts_below(directory)):
            detach(mount.target)
        shutil.rmtree(directory)


@pytest.fixture
def scratch() -> Iterator[str]:
    with scratch_directory() as directory:
        yield directory


@pytest.fixture(params=MetaForm, ids=lambda form: form.value)
def node(scratch: str, request: pytest.FixtureRequest) -> LazyNode:
    return LazyNode(scratch, request.param)
