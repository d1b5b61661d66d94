"""The compressing processes: how much is under way at a time, several layers at once, and that they end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from fetcher.convert import Compressors
from tests.fetcher.converting import Converter, lazy, member, tar_of, unpacked
from tests.trees import difference

P = ParamSpec("P")
R = TypeVar("R")

NOISE = random.Random(13).randbytes(1 << 20)


class Counting(Compressors):
    """Does everything at once in this process, and counts what was submitted and not yet taken."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        self.under_way = 0
        self.most = 0

    def submit(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        future = _Taken[R](self)
        future.set_result(function(*args, **kwargs))
        return future


class _Taken(Future[R]):
    def __init__(self, owner: Counting) -> None:
        super().__init__()
        self._owner = owner

    def result(self, timeout: float | None = None) -> R:
        self._owner.under_way -= 1
        return super().result(timeout)


@pytest.mark.parametrize("jobs", [1, 3])
def test_only_so_much_is_under_way_however_large_the_layer(tmp_path: Path, jobs: int) -> None:
    compressors = Counting(jobs)
    convert = Converter(tmp_path, compressors)
    tar = tar_of(*(member(str(number), NOISE) for number in range(40)))
    converted = convert(tar, level=1)
    assert compressors.most == 2 * jobs + 1
    assert compressors.under_way == 0
    assert difference(lazy(converted), unpacked(tar)) == []


def test_several_layers_share_the_processes(tmp_path: Path) -> None:
    tars = [
        tar_of(member("name", NOISE[number:]), member(str(number), NOISE[:number])) for number in range(6)
    ]
    with Compressors(2) as compressors, ThreadPoolExecutor(6) as threads:

        def convert(number: int) -> bytes:
            directory = tmp_path / str(number)
            directory.mkdir()
            return Converter(directory, compressors)(tars[number], chunk_size=1 << 18).tar

        together = list(threads.map(convert, range(6)))
    for number, tar in enumerate(tars):
        assert difference(unpacked(together[number]), unpacked(tar)) == []


def test_jobs_are_as_many_as_there_are_processors() -> None:
    assert Compressors().jobs == len(os.sched_getaffinity(0))


_SCRIPT = """
import os, sys, time
from fetcher.convert import Compressors

if __name__ == "__main__":
    with Compressors(2) as compressors:
        print(compressors.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command with compressing processes, one of which it names on its output."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_they_end_with_the_command_however_that_ends(
    command: subprocess.Popen[bytes], signal_number: signal.Signals
) -> None:
    assert command.stdout is not None
    worker = int(command.stdout.readline())
    assert os.path.exists(f"/proc/{worker}")
    command.send_signal(signal_number)
    command.wait(30)
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < deadline, "a compressing process outlived its command"
        time.sleep(0.02)


def test_they_import_no_more_than_they_need() -> None:
    code = "import sys, fetcher.convert.compressing; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not {"httpx", "anyio", "zstandard", "grpc", "click", "rich"} & {*loaded.split()}
