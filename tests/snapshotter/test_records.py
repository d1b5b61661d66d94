"""ROOT/records: what is kept, found again, combined, and thrown away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fetcher.errors import FormatError, SourceNotFound, StoreError
from fetcher.record import VERSION, Header, OpenedFile, Record, format_record
from mounter.mountinfo import Mount
from snapshotter.records.containers import chain_id, overlays
from snapshotter.records.store import RecordStore, by_time, combined, read_record, write_record

A = "sha256:" + "a" * 64
B = "sha256:" + "b" * 64
LAYER = "utwhj6z3ttmvutwhj6z3"


def record(*paths: str, **fields: object) -> Record:
    header = Header(layergate_record=VERSION, **fields)  # type: ignore[arg-type] # each test's own
    return Record(header, tuple(OpenedFile(path, float(at)) for at, path in enumerate(paths)))


def waits(root: Path, layer: str, kept: Record) -> None:
    directory = root / "records" / "waits"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{layer}.jsonl").write_bytes(format_record(kept))


def paths(of: Record) -> list[str]:
    return [file.path for file in of.files]


def test_what_was_kept_is_found_by_every_name(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    assert (store.has(A), store.all()) == (False, [])
    kept = record("a", chain=A, images=["docker.io/library/python:3"])
    path = store.keep(kept)
    assert store.has(A)
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700
    for name in ("python:3", "docker.io/library/python:3", A, "aaaaaaaa"):
        assert [one.record for one in store.matching(name)] == [kept], name
    for name in ("python:4", "registry.example/python:3", B, "aaa", ""):
        assert store.matching(name) == [], name


def test_waits_are_found_by_image_and_layer(tmp_path: Path) -> None:
    waits(tmp_path, LAYER, record("w", images=["example/one:1", "example/two:2"], layers=[LAYER]))
    store = RecordStore(str(tmp_path))
    for name in ("example/two:2", LAYER, LAYER[:8]):
        (found,) = store.matching(name)
        assert found.waits


def test_what_is_damaged_or_not_ours_is_passed_over(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.keep(record("a", chain=A))
    (tmp_path / "records" / f"{'b' * 64}.jsonl").write_bytes(b"junk\n")
    (tmp_path / "records" / "notes.jsonl").write_bytes(format_record(record("x")))
    assert [one.record.header.chain for one in store.all()] == [A]


def test_the_newest_come_first_and_the_oldest_go(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    names = [f"sha256:{number:064x}" for number in range(5)]
    for age, name in enumerate(names):
        os.utime(store.keep(record("a", chain=name)), (1000 - age, 1000 - age))
    (tmp_path / "records" / f"{'c' * 64}.jsonl.1234").write_bytes(b"left by a crash")
    assert [one.record.header.chain for one in store.all()] == names
    store.trim(records=3)
    assert [one.record.header.chain for one in store.all()] == names[:3]
    assert len(os.listdir(tmp_path / "records")) == 3
    store.trim(size=2 * store.all()[0].size)
    assert [one.record.header.chain for one in store.all()] == names[:2]


def test_clearing(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.keep(record("a", chain=A))
    store.keep(record("a", chain=B))
    found = store.matching(A)
    store.clear(found)
    store.clear(found)
    assert [one.record.header.chain for one in store.all()] == [B]


def test_opens_come_before_what_else_was_waited_for(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    store.keep(record("b", "a", chain=A, images=["i:1"]))
    waits(tmp_path, LAYER, record("c", "a", images=["i:1"], started=5.0))
    assert paths(combined(store.matching("i:1"))) == ["b", "a", "c"]


def test_waits_alone_are_a_record_too(tmp_path: Path) -> None:
    waits(tmp_path, LAYER, record("c", "a", images=["i:1"], started=5.0))
    assert paths(combined(RecordStore(str(tmp_path)).matching("i:1"))) == ["c", "a"]


def test_waits_of_several_layers_are_in_the_order_of_the_clock() -> None:
    one = record("a", "b", started=100.0, layers=["l1"], images=["i:1"])
    other = record("c", "d", started=100.5, layers=["l2"], images=["i:1"])
    merged = by_time([other, one])
    assert [(file.path, file.at) for file in merged.files] == [("a", 0.0), ("c", 0.5), ("b", 1.0), ("d", 1.5)]
    assert merged.header.layers == ["l2", "l1"]


def test_records_in_files_of_the_user_s(tmp_path: Path) -> None:
    path = str(tmp_path / "kept.jsonl")
    kept = record("a", "b", image="i")
    write_record(path, kept)
    write_record(path, kept)
    assert read_record(path) == kept
    assert os.listdir(tmp_path) == ["kept.jsonl"]
    with pytest.raises(SourceNotFound, match=r"absent\.jsonl"):
        read_record(str(tmp_path / "absent.jsonl"))
    with pytest.raises(StoreError, match="cannot read"):
        read_record(str(tmp_path))
    with pytest.raises(StoreError, match="cannot write"):
        write_record(str(tmp_path / "absent" / "kept"), kept)
    (tmp_path / "junk").write_bytes(b"junk\n")
    with pytest.raises(FormatError, match="junk"):
        read_record(str(tmp_path / "junk"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (A, A),
        (f"k8s.io/12/{A}", A),
        (f"{A}@1764000000000000000", A),
        ("default/3/extract-1-abc sha256:x", None),
        (f"key-{A}", None),
        (f"{A}-more", None),
        ("web", None),
        ("", None),
    ],
)
def test_chain_ids_in_names_of_snapshots(name: str, expected: str | None) -> None:
    assert chain_id(name) == expected


def test_containers_overlays_are_known_by_their_upper_directories() -> None:
    def mount(target: str, *options: str, fstype: str = "overlay") -> Mount:
        return Mount(1, 0, (0, 1), "/", target, (), False, fstype, "overlay", options)

    found = overlays(
        [
            mount("/lazy", "lowerdir+=/meta"),
            mount("/tmp/containerd-mount123", "upperdir=/s/1/fs"),
            mount("/run/c/rootfs", "rw", "lowerdir=/l", "upperdir=/s/1/fs", "workdir=/s/1/work"),
            mount("/again", "upperdir=/s/1/fs"),
            mount("/ext4", "upperdir=/s/2/fs", fstype="ext4"),
        ]
    )
    assert found == {"/s/1/fs": "/run/c/rootfs"}
