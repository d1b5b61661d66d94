"""Which files somebody waited for, as they are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fetcher.record import OpenedFile, Record, parse_record
from mounter.waits import Waits, waits_directory

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def kept(root: str, layer: str) -> Record:
    path = f"{waits_directory(root)}/{layer}.jsonl"
    with open(path, "rb") as file:
        return parse_record(file.read(), name=path)


def paths(record: Record) -> list[str]:
    return [file.path for file in record.files]


async def test_waits_are_kept_by_layer_in_their_order(tmp_path: Path) -> None:
    root = str(tmp_path)
    waits = Waits(root, enabled=True)
    waits.note("l1", "b", None, ["image:1"])
    waits.note("l2", "x", None, [])
    waits.note("l1", "a", None, ["image:1"])
    waits.note("l1", "b", None, ["image:1"])
    assert not os.path.exists(waits_directory(root))
    await waits.flush()
    first = kept(root, "l1")
    assert paths(first) == ["b", "a"]
    assert (first.header.images, first.header.layers) == (["image:1"], ["l1"])
    assert first.header.started > 1_600_000_000
    assert paths(kept(root, "l2")) == ["x"]
    assert os.stat(waits_directory(root)).st_mode & 0o777 == 0o700


async def test_what_comes_later_is_added(tmp_path: Path) -> None:
    root = str(tmp_path)
    waits = Waits(root, enabled=True)
    waits.note("l", "a", None, [])
    await waits.flush()
    await waits.flush()
    started = kept(root, "l").header.started
    # Another mounter, which does not know what this one noted.
    successor = Waits(root, enabled=True)
    for path in ("b", "a"):
        successor.note("l", path, None, [])
    await successor.flush()
    record = kept(root, "l")
    assert paths(record) == ["a", "b"]
    assert record.header.started == started
    assert record.files[1].at >= record.files[0].at


async def test_parts_of_a_large_file_are_united(tmp_path: Path) -> None:
    root = str(tmp_path)
    waits = Waits(root, enabled=True)
    for part in ((0, 10), (10, 20), (50, 60), (0, 10)):
        waits.note("l", "large", part, [])
    await waits.flush()
    (found,) = kept(root, "l").files
    assert found == OpenedFile("large", found.at, [(0, 20), (50, 60)])


async def test_nothing_is_noted_where_it_is_off(tmp_path: Path) -> None:
    root = str(tmp_path)
    waits = Waits(root, enabled=False)
    waits.note("l", "a", None, [])
    await waits.flush()
    assert not os.path.exists(waits_directory(root))
    waits.enabled = True
    waits.note("l", "a", None, [])
    await waits.flush()
    assert paths(kept(root, "l")) == ["a"]


async def test_a_damaged_record_begins_anew(tmp_path: Path) -> None:
    root = str(tmp_path)
    os.makedirs(waits_directory(root))
    with open(f"{waits_directory(root)}/l.jsonl", "wb") as file:
        file.write(b"junk\n" * 3)
    waits = Waits(root, enabled=True)
    waits.note("l", "a", None, [])
    await waits.flush()
    assert paths(kept(root, "l")) == ["a"]


async def test_a_record_grows_to_its_limit_and_no_further(tmp_path: Path) -> None:
    root = str(tmp_path)
    waits = Waits(root, enabled=True)
    sizes = []
    for turn in range(4):
        for number in range(1500):
            waits.note("l", f"{turn}/{number}/{'x' * 400}", None, [])
        await waits.flush()
        sizes.append(os.path.getsize(f"{waits_directory(root)}/l.jsonl"))
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3] < 2 << 20
    assert paths(kept(root, "l"))[-1].startswith("1/1499/")
