"""Uses: what one process needs, another leaves alone; what nobody needs, anybody takes away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from mounter.lowers import Meta, lazy_lowers
from mounter.meta import metas
from mounter.uses import (
    Uses,
    forget_unused,
    release_unused,
    release_unused_lower,
    release_unused_meta,
    unused,
)
from tests.mounter.gate_node import read
from tests.mounter.mounts import LazyNode, file

HOLDER: Final = """
import sys
from mounter.uses import Uses
Uses(sys.argv[1]).add(sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(root: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that uses `name`, until the block ends or it is killed."""
    packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, root, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=packages,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def is_unused(root: str, name: str) -> bool:
    with unused(root, name) as free:
        return free


class TestLocks:
    """Who excludes whom."""

    def test_a_use_lasts_as_long_as_it_was_added_more_often_than_dropped(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        uses = Uses(root)
        assert is_unused(root, "one")
        uses.add("one")
        uses.add("one")
        uses.drop("one")
        assert "one" in uses
        assert not is_unused(root, "one")
        assert is_unused(root, "other")
        uses.drop("one")
        assert "one" not in uses
        assert is_unused(root, "one")

    def test_holders_of_one_process_count_each_for_itself(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        one, other = Uses(root), Uses(root)
        one.add("name")
        other.add("name")
        one.close()
        one.close()
        assert not is_unused(root, "name")
        other.close()
        assert is_unused(root, "name")

    def test_another_processs_use_ends_with_it(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        with held_elsewhere(root, "name") as holder:
            assert not is_unused(root, "name")
            holder.kill()
            holder.wait()
            assert is_unused(root, "name")

    def test_whoever_comes_while_it_is_taken_away_begins_anew(self, tmp_path: Path) -> None:
        """Whoever takes away removes the lock's file; a late user must not hold the removed one."""
        root = str(tmp_path)
        uses = Uses(root)
        with unused(root, "name") as free:
            assert free
            assert not is_unused(root, "name"), "one takes away at a time"
        uses.add("name")
        assert not is_unused(root, "name")
        assert os.listdir(tmp_path / "uses") == ["name"]
        uses.close()
        assert is_unused(root, "name")
        assert os.listdir(tmp_path / "uses") == []

    def test_lock_files_that_nobody_holds_are_forgotten(self, tmp_path: Path) -> None:
        root = str(tmp_path)
        forget_unused(root)
        uses = Uses(root)
        uses.add("used")
        with held_elsewhere(root, "killed") as holder:
            forget_unused(root)
            assert sorted(os.listdir(tmp_path / "uses")) == ["killed", "used"]
            holder.kill()
            holder.wait()
        forget_unused(root)
        assert os.listdir(tmp_path / "uses") == ["used"]
        assert not is_unused(root, "used")
        uses.close()


@pytest.mark.root
class TestReleasing:
    """Lazy lowers and META on a node."""

    def test_what_is_used_stays_and_the_rest_goes(self, node: LazyNode) -> None:
        for layer in ("l1", "l2", "l3"):
            node.add(layer, file("a"))
            node.land(layer, "a")
        used, other = (os.path.basename(node.lazy(Meta(layer))) for layer in ("l1", "l2"))
        uses = Uses(node.root)
        uses.add(used)
        uses.add("l3")
        release_unused(node.root)
        assert [lower.id for lower in lazy_lowers(node.root)] == [used]
        assert metas(node.root) == ["l3"]
        assert read(node.path("lazy", used), "a") == b"hello", "without META's own mount"
        assert not release_unused_lower(node.root, used)
        assert not release_unused_meta(node.root, "l3")
        assert release_unused_lower(node.root, other), "it is gone already"
        uses.close()
        release_unused(node.root)
        assert not lazy_lowers(node.root)
        assert not metas(node.root)

    def test_what_another_process_uses_stays(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        with held_elsewhere(node.root, "l1"):
            release_unused(node.root)
            assert metas(node.root) == ["l1"]
        release_unused(node.root)
        assert metas(node.root) == []
