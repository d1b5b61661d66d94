"""Counters that any process can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fetcher.progress import FIELDS, Field, Progress


def test_fields_begin_at_zero(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "progress"))
    assert [progress[field] for field in Field] == [0] * len(Field)
    assert (tmp_path / "progress").stat().st_mode & 0o777 == 0o600


def test_every_field_has_its_place() -> None:
    assert len({int(field) for field in Field}) == len(Field)
    assert max(Field) < FIELDS


def test_fields_are_kept_apart(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "progress"))
    for field in Field:
        progress[field] = 1000 + field
    assert [progress[field] for field in Field] == [1000 + field for field in Field]


def test_others_see_a_change_at_once(tmp_path: Path) -> None:
    ours, theirs = Progress(str(tmp_path / "progress")), Progress(str(tmp_path / "progress"))
    ours[Field.POSITION] = 7
    ours.add(Field.POSITION, 5)
    assert theirs[Field.POSITION] == 12


def test_another_process_writes_another_field(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "progress"))
    progress[Field.FILES_DONE] = 3
    program = (
        "import sys\n"
        "from fetcher.progress import Field, Progress\n"
        "Progress(sys.argv[1]).add(Field.FETCHED_ON_DEMAND, 1 << 40)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "progress")],
        check=True,
        env={"PYTHONPATH": os.getcwd()},
    )
    assert (progress[Field.FILES_DONE], progress[Field.FETCHED_ON_DEMAND]) == (3, 1 << 40)


def test_counters_outlive_the_mapping(tmp_path: Path) -> None:
    progress = Progress(str(tmp_path / "progress"))
    progress[Field.BYTES_TOTAL] = (1 << 64) - 1
    progress.close()
    assert Progress(str(tmp_path / "progress"))[Field.BYTES_TOTAL] == (1 << 64) - 1


@pytest.mark.parametrize("content", [b"", b"\x05", (5).to_bytes(8, "little") * 2])
def test_a_file_that_was_cut_short_is_filled_up(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress").write_bytes(content)
    progress = Progress(str(tmp_path / "progress"))
    assert progress[Field.BYTES_TOTAL] == (5 if content else 0)
    progress[Field.REQUESTS] = 9
    assert progress[Field.REQUESTS] == 9


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_numbers_that_have_no_room(tmp_path: Path, value: int) -> None:
    progress = Progress(str(tmp_path / "progress"))
    progress[Field.RATE] = 4
    with pytest.raises(ValueError, match="invalid value"):
        progress[Field.RATE] = value
    assert progress[Field.RATE] == 4
