"""Links in LATE: when they stand, when they go, and who may take them away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mounter.handover import Late

LAYER = "a" * 20


@pytest.fixture
def plain(tmp_path: Path) -> str:
    (tmp_path / "file").write_bytes(b"content")
    return str(tmp_path / "file")


def linked(root: Path, path: str = "usr/file") -> bool:
    return os.path.exists(root / "late" / LAYER / "fs" / path)


def test_a_link_stands_until_a_second_sweep_finds_it_due(tmp_path: Path, plain: str) -> None:
    late = Late(str(tmp_path), 0)
    assert late.hand_over(LAYER, "usr/file", plain)
    assert os.stat(plain).st_nlink == 2
    late.sweep()
    assert linked(tmp_path)
    late.sweep()
    assert not linked(tmp_path)
    assert os.stat(plain).st_nlink == 1
    assert os.listdir(tmp_path / "late") == [], "no empty directories stay behind"
    assert len(late) == 0


def test_a_link_that_is_not_due_stays(tmp_path: Path, plain: str) -> None:
    late = Late(str(tmp_path), 3600)
    assert late.hand_over(LAYER, "usr/file", plain)
    late.sweep()
    late.sweep()
    assert linked(tmp_path)


def test_a_file_that_is_handed_over_again_starts_anew(tmp_path: Path, plain: str) -> None:
    late = Late(str(tmp_path), 0)
    late.hand_over(LAYER, "usr/file", plain)
    late.sweep()
    assert late.hand_over(LAYER, "usr/file", plain)
    late.sweep()
    assert linked(tmp_path)
    late.sweep()
    assert not linked(tmp_path)


def test_neighbours_keep_their_directory(tmp_path: Path, plain: str) -> None:
    late = Late(str(tmp_path), 0)
    late.hand_over(LAYER, "usr/file", plain)
    late.sweep()
    late.hand_over(LAYER, "usr/other", plain)
    late.sweep()
    assert not linked(tmp_path)
    assert linked(tmp_path, "usr/other")


def test_a_file_that_is_gone_cannot_be_handed_over(tmp_path: Path) -> None:
    assert not Late(str(tmp_path), 0).hand_over(LAYER, "usr/file", str(tmp_path / "absent"))


def test_another_file_of_that_name_is_not_taken_for_it(tmp_path: Path, plain: str) -> None:
    late = Late(str(tmp_path), 3600)
    (tmp_path / "stale").write_bytes(b"of an earlier life of the layer")
    assert late.hand_over(LAYER, "usr/file", str(tmp_path / "stale"))
    assert late.hand_over(LAYER, "usr/file", plain)
    assert (tmp_path / "late" / LAYER / "fs/usr/file").read_bytes() == b"content"


def test_links_of_others_are_taken_over_once(tmp_path: Path, plain: str) -> None:
    Late(str(tmp_path), 0).hand_over(LAYER, "usr/file", plain)
    late = Late(str(tmp_path), 0)
    assert late.adopt() == 1
    assert late.adopt() == 0
    late.sweep()
    late.sweep()
    assert not linked(tmp_path)


def test_a_retired_one_removes_nothing_and_relies_on_nothing_of_others(tmp_path: Path, plain: str) -> None:
    retired = Late(str(tmp_path), 0)
    retired.hand_over(LAYER, "usr/file", plain)
    retired.retire()
    retired.sweep()
    retired.sweep()
    assert linked(tmp_path)
    assert not retired.hand_over(LAYER, "usr/file", plain), "its link may be removed at any time"
    assert retired.hand_over(LAYER, "usr/other", plain), "this one has just been made"
    successor = Late(str(tmp_path), 0)
    assert successor.adopt() == 2
