"""The flag of foreground work, as several processes see it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fetcher.demand import HOLD_SECONDS, Demand, Slot


def test_nobody_is_busy_at_first(tmp_path: Path) -> None:
    assert not Demand(str(tmp_path)).left()
    assert (tmp_path / "demand").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("slot", list(Slot))
def test_a_mark_is_seen_by_others_until_it_is_cleared(tmp_path: Path, slot: Slot) -> None:
    ours, theirs = Demand(str(tmp_path)), Demand(str(tmp_path))
    ours.mark(slot)
    assert theirs.left()
    assert Demand(str(tmp_path)).left()
    ours.clear(slot)
    assert not theirs.left()


def test_it_is_known_for_how_long_at_least(tmp_path: Path) -> None:
    demand = Demand(str(tmp_path))
    demand.mark(Slot.ON_DEMAND, 0.5)
    demand.mark(Slot.PREFETCH, 0.2)
    assert 0.2 < demand.left() <= 0.5
    demand.clear(Slot.ON_DEMAND)
    assert demand.left() <= 0.2


def test_slots_do_not_clear_each_other(tmp_path: Path) -> None:
    demand = Demand(str(tmp_path))
    demand.mark(Slot.ON_DEMAND)
    demand.mark(Slot.PREFETCH)
    demand.clear(Slot.ON_DEMAND)
    assert demand.left()
    demand.clear(Slot.PREFETCH)
    assert not demand.left()


def test_a_mark_of_a_process_that_is_killed_runs_out(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from fetcher.demand import Demand, Slot\n"
        "Demand(sys.argv[1]).mark(Slot.ON_DEMAND)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, env={"PYTHONPATH": os.getcwd()}
    )
    assert killed.returncode == -9
    demand = Demand(str(tmp_path))
    marked_until = int.from_bytes((tmp_path / "demand").read_bytes()[:8], "little")
    assert 0 < marked_until <= time.monotonic_ns() + HOLD_SECONDS * 1e9
    while demand.left():
        time.sleep(0.01)
    assert time.monotonic_ns() >= marked_until


def test_a_mark_from_before_the_machine_started_anew_is_none(tmp_path: Path) -> None:
    """ROOT is on disk, and the monotonic clock begins at 0 again."""
    month_of_uptime = time.monotonic_ns() + 30 * 86_400 * 10**9
    (tmp_path / "demand").write_bytes(month_of_uptime.to_bytes(8, "little"))
    demand = Demand(str(tmp_path))
    assert not demand.left()
    demand.mark(Slot.PREFETCH)
    assert demand.left()


def test_root_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Demand(str(tmp_path / "nowhere"))
