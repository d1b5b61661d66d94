"""The fork server's socket: below the root, gone with its process or with the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from mounter.fork_socket import left_fork_sockets, remove_left_fork_sockets

HOLDER: Final = """
import os, sys
from mounter import forks
from mounter.fork_socket import keep_fork_socket_in, remove_fork_socket
if __name__ == "__main__":
    keep_fork_socket_in(sys.argv[1])
    keep_fork_socket_in("/nowhere")
    forks.start_fork_server([])
    forks.close(forks.start(os.mkdir, sys.argv[2]), 20)
    print("forked", flush=True)
    if sys.stdin.readline() == "leave\\n":
        remove_fork_socket()
        os._exit(0)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Longer than a socket's address may be."""
    path = tmp_path / ("r" * 120)
    path.mkdir()
    return path


@contextmanager
def holder(root: Path, made: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has forked one off, and waits for a line."""
    packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    temporary = root.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), str(made)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=packages,
        env=os.environ | {"TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        try:
            assert made.is_dir(), "what was forked off did its work"
            assert list(temporary.iterdir()) == []
            yield process
        finally:
            process.kill()


def sockets(root: Path) -> list[str]:
    return [path.name for path in (root / "forks").iterdir() if path.name != "lock"]


@pytest.mark.parametrize("word", ["end", "leave"])
def test_a_process_that_ends_leaves_none(root: Path, tmp_path: Path, word: str) -> None:
    with holder(root, tmp_path / "made") as process:
        assert len(sockets(root)) == 1
        assert left_fork_sockets(str(root)) == []
        _, _ = process.communicate(f"{word}\n", timeout=60)
        assert process.returncode == 0
    assert sockets(root) == []


def test_that_of_a_killed_process_is_removed_and_no_other(root: Path, tmp_path: Path) -> None:
    with holder(root, tmp_path / "living"):
        [living] = sockets(root)
        with holder(root, tmp_path / "killed") as killed:
            [left] = set(sockets(root)) - {living}
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        assert left_fork_sockets(str(root)) == [str(root / "forks" / left)]
        with holder(root, tmp_path / "next"):
            assert left not in sockets(root)
            assert living in sockets(root)
        remove_left_fork_sockets(str(root))
        assert sockets(root) == [living]
    remove_left_fork_sockets(str(root))
    assert sockets(root) == []


def test_where_there_never_was_one(tmp_path: Path) -> None:
    assert left_fork_sockets(str(tmp_path)) == []
    remove_left_fork_sockets(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
