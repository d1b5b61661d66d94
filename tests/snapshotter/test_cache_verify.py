"""Files against their digests, and repairing them from the blob."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.cache.verify import FaultKind, Verdict, verify_layers
from snapshotter.cli.cache_verify import verified
from snapshotter.config import Config
from tests import trees
from tests.estargz import build, chardev, dir, fifo, file, whiteout
from tests.snapshotter.cached import CachedNode, entries

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path: Path) -> CachedNode:
    return CachedNode(tmp_path)


def silent(_done: int, _total: int) -> None:
    """No progress."""


def check(node: CachedNode, *layers: str) -> list[Verdict]:
    return list(verify_layers(node.store, layers, silent))


def repair(node: CachedNode, layer: str) -> Verdict:
    [verdict] = verified(node.store, [layer], Config(), repair=True, progress=silent)
    return verdict


def fs(node: CachedNode, layer: str, path: str) -> Path:
    return Path(node.store.fs(layer), path)


def flip(path: Path) -> None:
    """Change one byte and nothing else, as a failing disk does."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as opened:
        opened.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_intact_layers(node: CachedNode) -> None:
    layers = [node.small(seed) for seed in range(3)]
    verdicts = check(node, *layers)
    assert [verdict.layer for verdict in verdicts] == layers
    assert all(verdict.intact for verdict in verdicts)
    assert verdicts[0].bytes == 5 * 3000
    assert verdicts[0].digest == node.store.record(layers[0]).digest


def test_progress_ends_at_the_whole(node: CachedNode) -> None:
    steps: list[tuple[int, int]] = []
    list(verify_layers(node.store, [node.small(1), node.small(2)], lambda *step: steps.append(step)))
    assert steps[-1] == (30000, 30000)


Damage = Callable[[Path], None]


def swap_kind(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


def lengthen(path: Path) -> None:
    with path.open("ab") as opened:
        opened.write(b"more")


def become_directory(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def other_target(path: Path) -> None:
    path.unlink()
    path.symlink_to("file3")


def apart(path: Path) -> None:
    """A copy in the place of a hard link."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("path", "damage", "kind", "named"),
    [
        ("usr/file2", flip, FaultKind.CONTENT, "usr/file2"),
        ("usr/file2", lengthen, FaultKind.CONTENT, "usr/file2"),
        ("usr/file2", os.unlink, FaultKind.MISSING, "usr/file2"),
        ("usr/file2", swap_kind, FaultKind.OTHER, "usr/file2"),
        ("usr/file2", become_directory, FaultKind.OTHER, "usr/file2"),
        ("usr/file1", flip, FaultKind.CONTENT, "usr/file1"),
        ("usr/linked", os.unlink, FaultKind.MISSING, "usr/file1"),
        ("usr/linked", apart, FaultKind.OTHER, "usr/file1"),
        ("usr/pointing", os.unlink, FaultKind.MISSING, "usr/pointing"),
        ("usr/pointing", other_target, FaultKind.OTHER, "usr/pointing"),
        ("usr/empty", os.unlink, FaultKind.MISSING, "usr/empty"),
        ("usr/empty", lengthen, FaultKind.CONTENT, "usr/empty"),
        ("device", os.unlink, FaultKind.MISSING, "device"),
        ("gone", os.unlink, FaultKind.MISSING, "gone"),
        ("pipe", other_target, FaultKind.OTHER, "pipe"),
    ],
)
def test_damage_is_found_and_mended(
    node: CachedNode, path: str, damage: Damage, kind: FaultKind, named: str
) -> None:
    odd = [*entries(), chardev("device", 1, 3), whiteout("gone"), fifo("pipe")]
    layer = node.add(build(odd), "registry.test/odd:1")
    before = trees.scan(node.store.fs(layer))
    damage(fs(node, layer, path))
    [verdict] = check(node, layer)
    assert [(fault.path, fault.kind) for fault in verdict.faults] == [(named, kind)]
    assert not verdict.intact
    assert node.store.is_complete(layer), "verifying alone changes nothing"
    mended = repair(node, layer)
    assert mended.repaired
    assert mended.intact
    assert not trees.difference(before, trees.scan(node.store.fs(layer)))
    assert node.store.is_complete(layer)
    assert node.store.same_boot(layer)
    assert not os.path.exists(os.path.join(node.store.directory(layer), "repair"))
    assert check(node, layer)[0].faults == []


def test_a_missing_directory_comes_back_with_all_that_was_in_it(node: CachedNode) -> None:
    layer = node.add(
        build([dir("a/", mode=0o750, uid=3), dir("a/b/", mode=0o711), file("a/b/c", b"c" * 5000)]),
        "registry.test/deep:1",
    )
    before = trees.scan(node.store.fs(layer))
    shutil.rmtree(fs(node, layer, "a"))
    assert len(check(node, layer)[0].faults) == 3
    assert repair(node, layer).intact
    assert not trees.difference(before, trees.scan(node.store.fs(layer)))


def test_only_what_is_wrong_is_replaced_and_what_is_open_stays(node: CachedNode) -> None:
    layer = node.small(1)
    right = fs(node, layer, "usr/file0").stat().st_ino
    wrong = fs(node, layer, "usr/file3")
    flip(wrong)
    damaged = wrong.read_bytes()
    with wrong.open("rb") as opened:
        assert repair(node, layer).intact
        assert opened.read() == damaged
    assert wrong.read_bytes() == bytes([3, 1]) * 1500
    assert fs(node, layer, "usr/file0").stat().st_ino == right


def test_of_an_incomplete_layer_only_what_is_there_has_to_be_right(node: CachedNode) -> None:
    layer = node.small(1, complete=False)
    assert check(node, layer)[0].intact
    fs(node, layer, "usr").mkdir()
    fs(node, layer, "usr/file1").write_bytes(bytes([1, 1]) * 1500)
    fs(node, layer, "usr/file2").write_bytes(b"wrong" * 600)
    [verdict] = check(node, layer)
    assert [(fault.path, fault.kind) for fault in verdict.faults] == [("usr/file2", FaultKind.CONTENT)]
    assert repair(node, layer).intact
    assert fs(node, layer, "usr/file2").read_bytes() == bytes([2, 1]) * 1500
    assert not node.store.is_complete(layer)
    assert not fs(node, layer, "usr/file3").exists()


def test_what_cannot_be_fetched_is_not_believed_any_more(node: CachedNode) -> None:
    layer = node.small(1)
    flip(fs(node, layer, "usr/file2"))
    node.blob(layer).unlink()
    verdict = repair(node, layer)
    assert not verdict.intact
    assert verdict.error
    assert verdict.error.startswith("not repaired: ")
    assert not node.store.is_complete(layer)
    assert not node.store.same_boot(layer), "whoever streams it next verifies it first"
    assert fs(node, layer, "usr/file2").exists(), "a wrong file is better than none for who has it mounted"


def test_a_blob_that_is_wrong_itself_mends_nothing(node: CachedNode) -> None:
    layer = node.small(1)
    flip(fs(node, layer, "usr/file2"))
    member = next(one for one in node.store.tree(layer).members if one.pieces[0][0].path == "usr/file2")
    blob = bytearray(node.blob(layer).read_bytes())
    blob[member.offset + 12] ^= 0xFF
    node.blob(layer).write_bytes(blob)
    verdict = repair(node, layer)
    assert not verdict.intact
    assert check(node, layer)[0].faults[0].path == "usr/file2"


def test_a_layer_that_is_streamed_now_is_left_alone(node: CachedNode) -> None:
    layer = node.small(1)
    flip(fs(node, layer, "usr/file2"))
    with node.store.lock(layer):
        verdict = repair(node, layer)
    assert not verdict.intact
    assert "try again later" in str(verdict.error)
    assert node.store.is_complete(layer)


def test_a_damaged_table_of_contents_is_fetched_again(node: CachedNode) -> None:
    layer = node.small(1)
    toc = Path(node.store.directory(layer), "toc.json")
    right = toc.read_bytes()
    flip(toc)
    flip(fs(node, layer, "usr/file2"))
    [verdict] = check(node, layer)
    assert not verdict.intact
    assert "digest" in str(verdict.error)
    assert repair(node, layer).intact
    assert toc.read_bytes() == right
    assert check(node, layer)[0].intact


def test_a_damaged_record_says_so(node: CachedNode) -> None:
    layer = node.small(1)
    Path(node.store.directory(layer), "layer.json").write_text("{")
    verdict = repair(node, layer)
    assert not verdict.intact
    assert "damaged" in str(verdict.error)


def test_what_an_interrupted_repair_left_is_no_hindrance(node: CachedNode) -> None:
    layer = node.small(1)
    flip(fs(node, layer, "usr/file2"))
    stale = Path(node.store.directory(layer), "repair", "fs", "usr")
    stale.mkdir(parents=True)
    (stale / "file2").write_bytes(b"stale")
    assert repair(node, layer).intact
    assert fs(node, layer, "usr/file2").read_bytes() == bytes([2, 1]) * 1500
