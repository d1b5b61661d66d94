"""The mounter given up by whoever used it last."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mounter import client
from mounter.client import start_mounter
from mounter.control import socket_path
from mounter.errors import MounterUnreachable
from mounter.mountinfo import is_mount_point
from mounter.probe import Mode
from mounter.settings import MounterSettings
from mounter.uses import GATE, Uses
from snapshotter.config import Config
from snapshotter.errors import Unavailable
from snapshotter.gates import Gates, retire_unused
from tests.mounter.conftest import scratch

__all__ = ["scratch"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def root(scratch: str) -> Iterator[str]:
    """A root with a mounter, which is killed at the end."""
    started = start_mounter(scratch, MounterSettings(), Mode.GATE)
    pid = started.status().pid
    yield scratch
    if os.path.exists(f"/proc/{pid}"):
        os.kill(pid, signal.SIGKILL)


def pid_of(root: str) -> int:
    return client.connect(root).status().pid


def test_nothing_is_left_of_one_that_was_killed(root: str) -> None:
    os.kill(pid_of(root), signal.SIGKILL)
    retire_unused(root)
    assert not os.path.exists(socket_path(root))
    assert not is_mount_point(f"{root}/gate")
    retire_unused(root)  # nothing, again


def test_one_that_hangs_is_left_as_it_is(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_ANSWER_SECONDS", 0.3)
    pid = pid_of(root)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(MounterUnreachable):
            retire_unused(root)
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    assert is_mount_point(f"{root}/gate")
    assert pid_of(root) == pid


def test_one_that_is_used_stays(root: str) -> None:
    uses = Uses(root)
    uses.add(GATE)
    retire_unused(root)
    assert os.path.exists(socket_path(root))
    uses.close()
    retire_unused(root)
    assert not os.path.exists(socket_path(root))


@pytest.mark.anyio
async def test_a_disk_that_refuses_is_told_to_whoever_needs_the_mounter(scratch: str) -> None:
    gates = Gates(scratch, Config())
    await gates.probe_host()
    os.mkdir(f"{scratch}/mounter.start")  # where a file has to be opened
    with pytest.raises(Unavailable, match=r"cannot be started: .*/mounter\.start: Is a directory"):
        await gates.current()
    await gates.expect("a layer")  # it does without
    os.rmdir(f"{scratch}/mounter.start")
    try:
        assert await gates.current()
    finally:
        await gates.leave()
