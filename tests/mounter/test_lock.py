"""Locks between processes."""

from __future__ import annotations

import os
import threading

import pytest

from mounter.lock import locked


def test_a_second_holder_waits_for_the_first(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "lock")
    order = []

    def second() -> None:
        with locked(path):
            order.append("second")

    with locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_who_waited_for_a_removed_file_takes_the_new_one(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "lock")
    held = []

    def second() -> None:
        with locked(path):
            held.append(os.path.exists(path))

    with locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        os.unlink(path)
    waiting.join()
    assert held == [True]


def test_a_failure_inside_gives_the_lock_up(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "lock")
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    with locked(path):
        assert os.path.exists(path)


def test_a_directory_that_is_not_there(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(FileNotFoundError), locked(os.path.join(tmp_path, "missing", "lock")):
        pass
