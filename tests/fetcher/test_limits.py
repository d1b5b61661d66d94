"""Limits by their names: memory, open files, a slow disk."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from fetcher.errors import StoreError
from fetcher.limits import Slowness, ended, refused
from fetcher.logs import captured_logs, get_logger
from tests.estargz import build, file
from tests.faults.memory_group import MemoryGroup
from tests.fetcher.streaming import StreamedLayer
from tests.integration.harness import call
from tests.integration.processes import REPOSITORY

# A child takes more than there is; what its parent says of it.
_HUNGRY = """
import os, signal, sys, time
from fetcher.limits import ended, oom_kills
before = oom_kills()
child = os.fork()
if not child:
    taken = [bytearray(os.urandom(1 << 20)) for _ in range(1000)]
    os._exit(0)
print(ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), oom_kills_before=before))
"""


def test_a_process_killed_for_want_of_memory_is_told_from_one_killed_by_somebody() -> None:
    with MemoryGroup() as group:
        group.limit(64 << 20)
        command = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", _HUNGRY]
        said = call(group.entered(command)).strip()
        assert said == "was killed for want of memory: raise the memory limit of layergate's service"
        assert group.oom_kills == 1
    assert ended(-signal.SIGKILL, oom_kills_before=1 << 40) == "was killed by SIGKILL"
    assert ended(3, oom_kills_before=0) == "ended without a word (exit code 3)"


def test_a_file_that_there_is_no_descriptor_for_names_the_limit(tmp_path: Path) -> None:
    layer = StreamedLayer(tmp_path, build([file("one", b"1")]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(StoreError, match=r"'one': Too many open files: raise LimitNOFILE") as raised:
            layer.plain.write(layer.tree.nodes["one"], b"1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE


def test_what_no_limit_of_ours_causes_is_said_as_the_system_says_it() -> None:
    assert refused(OSError(errno.EROFS, os.strerror(errno.EROFS))) == "Read-only file system"
    assert refused(OSError("without a number")) == "without a number"


def test_a_slow_disk_is_told_of_once_a_minute() -> None:
    slowness = Slowness(get_logger("layergate.test"))
    with captured_logs() as lines:
        slowness.look(time.monotonic(), "/fast")
        slowness.look(time.monotonic() - 2, "/slow")
        slowness.look(time.monotonic() - 2, "/slow")
    assert [(line["event"], line["directory"]) for line in lines] == [("disk_slow", "/slow")]
