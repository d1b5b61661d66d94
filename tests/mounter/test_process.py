"""The mounter as a process: how it starts, what it survives, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import pytest

import mounter
from mounter.client import Mounter, connect, start_mounter
from mounter.control import PROTOCOL, socket_path
from mounter.errors import MounterRefused, MounterUnreachable
from mounter.lowers import lazy_lowers, release_lazy_lower
from mounter.mountinfo import is_mount_point, read_mounts
from mounter.probe import Mode
from mounter.settings import MounterSettings
from mounter.syscalls import detach, mount
from tests.estargz import file
from tests.mounter.gate_node import GateNode, gate_node, read, until
from tests.mounter.namespace import Namespace

__all__ = ["gate_node"]

pytestmark = pytest.mark.root

PACKAGES: Final = os.path.dirname(os.path.dirname(os.path.abspath(mounter.__file__)))
STARTER: Final = """
import sys, time
from mounter.client import start_mounter
from mounter.probe import Mode
from mounter.settings import MounterSettings
start_mounter(sys.argv[1], MounterSettings(), Mode.GATE)
print("started", flush=True)
time.sleep(600)
"""

# Answers as no mounter of this version does, and ends in good order.
STRANGER: Final = """
import os, signal, socket, sys
def leave(*_):
    os.unlink(sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("listening", flush=True)
    while True:
        client, _ = server.accept()
        with client:
            if client.recv(1000):
                client.sendall(b'{"type": "novelty"}\\n')
"""


@pytest.fixture
def root(scratch: str) -> Iterator[str]:
    """A root whose mounter, if the test started one, is killed at the end."""
    directory = os.path.join(scratch, "root")
    pids: list[int] = []
    try:
        yield directory
    finally:
        with suppress(MounterUnreachable):
            pids.append(Mounter(directory).status().pid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not alive(pid), "the end of the mounter")  # type: ignore[misc]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gate_mounts(root: str) -> int:
    gate = os.path.join(os.path.realpath(root), "gate")
    return sum(entry.target == gate for entry in read_mounts())


def test_a_mounter_starts_answers_and_stops(root: str) -> None:
    started = start_mounter(root, MounterSettings(), Mode.GATE)
    status = started.status()
    assert (status.protocol, status.mode) == (PROTOCOL, "gate")
    assert len(status.generation) == 16
    assert os.stat(socket_path(root)).st_mode & 0o777 == 0o600
    assert gate_mounts(root) == 1
    entry = next(entry for entry in read_mounts() if entry.target == os.path.join(root, "gate"))
    assert (entry.fstype, entry.source) == ("fuse.layergate", "layergate")
    assert entry.read_only
    assert os.getsid(status.pid) == status.pid
    spared = read(f"/proc/{status.pid}/oom_score_adj").strip() == b"-500"
    assert spared or b"oom_score_not_set" in read(root, "mounter.log"), "it says when it may not"
    assert connect(root).status().pid == status.pid
    started.stop()
    until(lambda: not alive(status.pid), "the end")
    assert gate_mounts(root) == 0
    assert not os.path.exists(socket_path(root))
    with pytest.raises(MounterUnreachable):
        started.status()


def test_only_one_runs_for_a_root(root: str) -> None:
    first = start_mounter(root, MounterSettings(), Mode.GATE)
    with pytest.raises(MounterRefused, match="another mounter holds"):
        start_mounter(root, MounterSettings(), Mode.GATE)
    assert gate_mounts(root) == 1
    assert first.status().mode == "gate"


def test_a_start_that_fails_says_why(scratch: str) -> None:
    path = os.path.join(scratch, "occupied")
    with open(path, "wb"):
        pass
    with pytest.raises(MounterRefused, match=r"did not come up: .*(File exists|Not a directory)"):
        start_mounter(path, MounterSettings(), Mode.GATE)


def test_a_gate_that_cannot_be_mounted_says_why(root: str) -> None:
    os.makedirs(root)
    with open(os.path.join(root, "gate"), "wb"):
        pass
    with pytest.raises(MounterRefused, match=r"did not come up: .*File exists.*gate"):
        start_mounter(root, MounterSettings(), Mode.GATE)


def test_it_survives_its_starter(root: str) -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, root], stdout=subprocess.PIPE, cwd=PACKAGES, start_new_session=True
    )
    try:
        assert starter.stdout is not None
        with starter.stdout as said:
            assert said.readline() == b"started\n"
        os.killpg(starter.pid, signal.SIGKILL)
    finally:
        starter.kill()
        starter.wait()
    status = connect(root).status()
    assert alive(status.pid)
    assert os.path.realpath(f"/proc/{status.pid}/cwd") == "/"
    assert os.readlink(f"/proc/{status.pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{status.pid}/fd/2") == os.path.join(root, "mounter.log")


def test_what_a_killed_one_left_is_cleared_away(root: str) -> None:
    first = start_mounter(root, MounterSettings(), Mode.GATE).status()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not alive(first.pid), "the end")
    assert gate_mounts(root) == 1, "left mounted, and dead"
    with pytest.raises(OSError, match="connect"):
        os.stat(os.path.join(root, "gate"))
    second = start_mounter(root, MounterSettings(), Mode.GATE).status()
    assert second.generation != first.generation
    assert gate_mounts(root) == 1
    assert os.listdir(os.path.join(root, "gate")) == []


def test_one_that_crashes_says_where(root: str) -> None:
    pid = start_mounter(root, MounterSettings(), Mode.GATE).status().pid
    os.kill(pid, signal.SIGSEGV)
    until(lambda: not alive(pid), "the end")
    said = read(root, "mounter.log").decode()
    assert "Segmentation fault" in said
    assert "mounter/process.py" in said


def test_settings_reach_a_running_one(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=600))
    layer = node.add([file("one", b"1")])
    container = node.container(layer)
    node.fault("hold")
    node.mounter.configure(MounterSettings(wait_seconds=0.2))
    with pytest.raises(OSError, match="Input/output error"):
        read(container, "one")


def test_trees_can_be_loaded_beforehand(node: GateNode) -> None:
    node.start()
    layer = node.add([file("one", b"1")])
    node.mounter.warm(["b" * 20, layer])
    until(lambda: node.mounter.status().loaded_layers == 1, "the tree")
    until(lambda: b"not_warmed" in read(node.root, "mounter.log"), "the layer that is not there")


@pytest.mark.parametrize("how", ["retire", "dismiss", "SIGTERM", "SIGINT", "SIGHUP"])
def test_retired_it_ends_when_nobody_uses_the_gate_any_more(node: GateNode, how: str) -> None:
    pid = node.start().pid
    layer = node.add([file("one", b"1"), file("two", b"2")])
    container = node.container(layer)
    retire(node, how, pid)
    until(lambda: gate_mounts(node.root) == 0, "the gate to be given up")
    assert read(container, "one") == b"1", "what runs on it goes on"
    with pytest.raises(MounterUnreachable):
        node.mounter.status()
    successor = node.start()
    assert successor.pid != pid
    assert read(container, "two") == b"2", "still by the old one"
    assert successor.counters.lookups_file == node.mounter.status().counters.lookups_file == 0
    assert read(node.container(layer), "two") == b"2"
    assert alive(pid)
    old, new = sorted(lazy_lowers(node.root), key=lambda lazy: lazy.generation == successor.generation)
    assert new.generation == successor.generation
    detach(container)
    release_lazy_lower(node.root, old.id)
    until(lambda: not alive(pid), "the end of the retired one")
    assert node.mounter.status().pid == successor.pid
    assert is_mount_point(new.path)


def retire(node: GateNode, how: str, pid: int) -> None:
    if how == "retire":
        node.mounter.retire()
    elif how == "dismiss":
        node.mounter.dismiss()
    else:
        os.kill(pid, signal.Signals[how])


def test_one_that_speaks_another_protocol_can_be_dismissed(root: str) -> None:
    os.makedirs(root)
    with subprocess.Popen(
        [sys.executable, "-c", STRANGER, socket_path(root)], stdout=subprocess.PIPE
    ) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"listening\n"
        with pytest.raises(MounterRefused, match="another protocol"):
            connect(root)
        Mounter(root).dismiss()
        assert stranger.wait(10) == 0
    with pytest.raises(MounterUnreachable):
        connect(root)
    Mounter(root).dismiss()  # there is none, and that is what was asked for
    assert start_mounter(root, MounterSettings(), Mode.GATE).status().mode == "gate"


def test_retired_with_nobody_on_it_it_ends_at_once(root: str) -> None:
    started = start_mounter(root, MounterSettings(), Mode.STUB)
    pid = started.status().pid
    started.retire()
    until(lambda: not alive(pid), "the end")
    assert start_mounter(root, MounterSettings(), Mode.GATE).status().mode == "gate"


def test_a_copy_of_the_gate_in_another_namespace_does_not_keep_a_retired_one(root: str) -> None:
    started = start_mounter(root, MounterSettings(), Mode.GATE)
    pid = started.status().pid
    with Namespace("private") as other:
        assert other.sees(f"{root}/gate")
        started.retire()
        until(lambda: not alive(pid), "the end")
        assert not other.sees(f"{root}/gate")


def test_a_copy_of_a_container_in_another_namespace_keeps_a_retired_one(node: GateNode) -> None:
    pid = node.start().pid
    container = node.container(node.add([file("one", b"1")]))
    with Namespace("private") as other:
        detach(container)
        release_lazy_lower(node.root, lazy_lowers(node.root)[0].id)
        node.mounter.retire()
        assert read(f"{other.root}{container}", "one") == b"1"
        assert alive(pid)
    until(lambda: not alive(pid), "the end, with that of the namespace")


def test_a_line_that_is_no_request_is_answered(root: str) -> None:
    start_mounter(root, MounterSettings(), Mode.GATE)
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as lines:
        connection.connect(socket_path(root))
        connection.sendall(b"what?\n" + b'{"type": "status"}\n')
        assert b'"failed"' in lines.readline()
        assert b'"generation"' in lines.readline()


def test_the_log_stays_small(node: GateNode) -> None:
    node.start(settings=MounterSettings(log_limit=4096))
    for _ in range(100):
        node.mounter.configure(MounterSettings(log_limit=4096))
    assert 0 < os.path.getsize(os.path.join(node.root, "mounter.log")) <= 4096
    assert 0 < os.path.getsize(os.path.join(node.root, "mounter.log.1")) <= 4096
    assert b"configured" in read(node.root, "mounter.log")


def test_something_else_mounted_on_the_gate_is_left_alone(root: str) -> None:
    gate = os.path.join(root, "gate")
    os.makedirs(gate)
    mount("mine", gate, "tmpfs")
    started = start_mounter(root, MounterSettings(), Mode.GATE)
    assert gate_mounts(root) == 2
    started.stop()
    until(lambda: gate_mounts(root) == 1, "the gate to go")
