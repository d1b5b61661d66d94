"""A request that has gone before it is read stops the mounter no more."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from mounter.fuse_reads import wait_readable
from tests.estargz import file
from tests.mounter.gate_node import GateNode, gate_node

__all__ = ["gate_node"]

OPENS: Final = 1500


def waits_for_requests(pid: int) -> bool:
    """Whether the main thread of a process blocks in a read of /dev/fuse."""
    for _ in range(3):
        if "fuse_dev_do_read" not in Path(f"/proc/{pid}/task/{pid}/stack").read_text():
            return False
        time.sleep(0.05)
    return True


def test_a_request_that_has_gone_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    told = 0
    real = trio.lowlevel.wait_readable

    async def tell(fd: int) -> None:
        nonlocal told
        await real(fd)
        told += 1
        if told == 1:  # another task's turn, before the one that waits has its own
            os.read(reader, 1)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", tell)

    async def scenario() -> None:
        async with trio.open_nursery() as tasks:
            os.write(writer, b"1")
            tasks.start_soon(wait_readable, reader)
            await trio.testing.wait_all_tasks_blocked()
            assert told == 1
            os.write(writer, b"2")
        assert os.read(reader, 1) == b"2"

    trio.run(scenario)


def test_a_read_that_blocks_all_the_same_is_broken_off() -> None:
    # PyDLL holds the interpreter's lock, as pyfuse3 does: no thread could help.
    code = """
import ctypes, os
from mounter.fuse_reads import keep_reads_short
keep_reads_short()
reader, writer = os.pipe()
libc = ctypes.PyDLL(None, use_errno=True)
print(libc.read(reader, ctypes.create_string_buffer(1), 1), ctypes.get_errno())
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.split() == ["-1", str(errno.EINTR)]


@pytest.mark.root
def test_a_signal_to_whoever_is_being_answered_stops_nobody(node: GateNode) -> None:
    """Once in 900 opens that a signal interrupted, the next request was waited for by all of the mounter."""
    pid = node.start().pid
    layer = node.add([file(f"f{number}", b"%d" % number) for number in range(OPENS)])
    root = node.container(layer)
    opener = threading.get_ident()
    chance = random.Random(3)
    opening = threading.Event()
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.is_set():
            opening.wait()
            opening.clear()
            time.sleep(chance.random() * 0.005)
            signal.pthread_kill(opener, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        for number in range(OPENS):
            opening.set()
            with open(os.path.join(root, f"f{number}"), "rb") as opened:
                assert opened.read() == b"%d" % number
            assert not waits_for_requests(pid)
    finally:
        ended.set()
        opening.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
