"""The database: what it refuses, what survives, and what it says of a file that is not its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.errors import (
    AlreadyExists,
    FailedPrecondition,
    MetadataCorrupt,
    MetadataError,
    MetadataForeign,
    MetadataInUse,
    MetadataTooNew,
    NotFound,
)
from snapshotter.metadata import SCHEMA_VERSION, Ancestor, Kind, Metadata, Snapshot, Usage
from snapshotter.remote import SNAPSHOT_REF


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "metadata.db")


def add(
    metadata: Metadata,
    name: str,
    kind: Kind = Kind.COMMITTED,
    parent: int | None = None,
    *,
    layer: str | None = None,
    **labels: str,
) -> int:
    with metadata.transaction():
        return metadata.insert(name, kind=kind, parent=parent, labels=labels, now_ns=7, layer=layer)


def test_a_snapshot_survives_reopening(path: str) -> None:
    with Metadata(path) as metadata:
        base = add(metadata, "base", layer="abc")
        top = add(metadata, "top", Kind.ACTIVE, base, one="1", empty="")
    with Metadata(path) as metadata:
        assert metadata.get("base") == Snapshot(base, "base", "", Kind.COMMITTED, 7, 7, layer="abc")
        assert metadata.get("top") == Snapshot(top, "top", "base", Kind.ACTIVE, 7, 7, labels={"one": "1"})
        assert metadata.layers() == {"abc"}
        assert metadata.ids() == {base, top}
        with pytest.raises(NotFound, match="'nosuch'"):
            metadata.get("nosuch")
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_failed_transaction_leaves_nothing(path: str) -> None:
    with Metadata(path) as metadata:
        add(metadata, "taken")

        def both() -> None:
            with metadata.transaction():
                for name in ("a", "taken"):
                    metadata.insert(name, kind=Kind.ACTIVE, parent=None, labels={"x": "y"}, now_ns=1)

        with pytest.raises(AlreadyExists):
            both()
        assert [snapshot.name for snapshot in metadata.page(0, 10)] == ["taken"]
        add(metadata, "a")


def test_a_killed_process_leaves_whole_transactions(path: str) -> None:
    script = f"""
import os
from snapshotter.metadata import Kind, Metadata
metadata = Metadata({path!r})
with metadata.transaction():
    metadata.insert("whole", kind=Kind.ACTIVE, parent=None, labels={{"a": "b"}}, now_ns=1)
with metadata.transaction():
    metadata.insert("half", kind=Kind.ACTIVE, parent=None, labels={{}}, now_ns=1)
    os._exit(3)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3
    with Metadata(path) as metadata:
        assert [snapshot.name for snapshot in metadata.page(0, 10)] == ["whole"]
        assert metadata.get("whole").labels == {"a": "b"}


def test_names_are_unique(path: str) -> None:
    with Metadata(path) as metadata:
        add(metadata, "a")
        active = add(metadata, "b", Kind.ACTIVE)
        with pytest.raises(AlreadyExists, match="'a'"):
            add(metadata, "a")
        with pytest.raises(AlreadyExists, match="'a'"), metadata.transaction():
            metadata.commit(active, name="a", labels={}, now_ns=9)
        assert metadata.get("b").kind is Kind.ACTIVE


def test_commit_replaces_name_kind_labels_and_times(path: str) -> None:
    with Metadata(path) as metadata:
        active = add(metadata, "key", Kind.ACTIVE, old="label")
        with metadata.transaction():
            metadata.commit(active, name="name", labels={"new": "label"}, now_ns=9)
        assert metadata.get("name") == Snapshot(
            active, "name", "", Kind.COMMITTED, 9, 9, labels={"new": "label"}
        )
        with metadata.transaction():
            metadata.count(active, Usage(4096, 2))
        assert metadata.get("name").usage == Usage(4096, 2)


def test_a_parent_stays(path: str) -> None:
    with Metadata(path) as metadata:
        base = add(metadata, "base")
        add(metadata, "child", Kind.VIEW, base, some="label")
        with pytest.raises(FailedPrecondition, match="remove"), metadata.transaction():
            metadata.delete(metadata.get("base"))
        with metadata.transaction():
            metadata.delete(metadata.get("child"))
            metadata.delete(metadata.get("base"))
        assert metadata.ids() == set()
        assert add(metadata, "base") not in {base, base + 1}  # ids are never used again


def test_chain_and_pages_are_in_order(path: str) -> None:
    with Metadata(path) as metadata:
        ids: list[int] = []
        for number in range(5):
            layer = f"layer{number}" if number % 2 else None
            ids.append(add(metadata, f"s{number}", parent=ids[-1] if ids else None, layer=layer))
        assert metadata.chain(ids[3]) == [
            Ancestor(ids[2], None),
            Ancestor(ids[1], "layer1"),
            Ancestor(ids[0], None),
        ]
        assert metadata.chain(ids[0]) == []
        assert [snapshot.id for snapshot in metadata.page(0, 3)] == ids[:3]
        assert [snapshot.id for snapshot in metadata.page(ids[2], 3)] == ids[3:]


def test_finding_a_remote_snapshot(path: str) -> None:
    with Metadata(path) as metadata:
        ref = {SNAPSHOT_REF: "sha256:x"}
        base = add(metadata, "base")
        add(metadata, "active", Kind.ACTIVE, base, **ref)
        assert metadata.find_committed("sha256:x", "base") is None
        add(metadata, "bottom", Kind.COMMITTED, None, **ref)
        add(metadata, "upper", Kind.COMMITTED, base, **ref)
        found = metadata.find_committed("sha256:x", "base")
        assert found is not None
        assert found.name == "upper"
        bottom = metadata.find_committed("sha256:x", "")
        assert bottom is not None
        assert bottom.name == "bottom"
        assert metadata.find_committed("sha256:y", "") is None


def _garbage(path: str) -> None:
    Path(path).write_bytes(b"this is no database" * 500)


def _foreign(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def _newer(path: str) -> None:
    Metadata(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def _damaged(path: str) -> None:
    with Metadata(path) as metadata, metadata.transaction():
        for number in range(2000):
            metadata.insert(
                f"snapshot{number}", kind=Kind.ACTIVE, parent=None, labels={"a": "b" * 50}, now_ns=1
            )
    with open(path, "r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096 * 20)


@pytest.mark.parametrize(
    ("spoil", "kind", "advice"),
    [
        (_garbage, MetadataCorrupt, "move the file away"),
        (_damaged, MetadataCorrupt, "move the file away"),
        (_foreign, MetadataForeign, "not layergate's"),
        (_newer, MetadataTooNew, "install that version"),
    ],
)
def test_a_file_that_cannot_be_used(
    path: str, spoil: Callable[[str], None], kind: type[MetadataError], advice: str
) -> None:
    spoil(path)
    with pytest.raises(kind, match=advice) as raised:
        Metadata(path)
    assert raised.value.path == path
    assert str(raised.value).startswith(path)


def test_one_process_at_a_time(path: str) -> None:
    with Metadata(path), pytest.raises(MetadataInUse, match="running already"):
        Metadata(path)
    Metadata(path).close()


def test_a_closed_or_missing_database(path: str) -> None:
    metadata = Metadata(path)
    metadata.close()
    metadata.close()
    with pytest.raises(MetadataError, match="closed"):
        metadata.ids()
    with pytest.raises(MetadataError, match="unable to open"):
        Metadata(path + "/nowhere/metadata.db")
