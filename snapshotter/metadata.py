"""Names, kinds, parents and labels of snapshots: one SQLite file.

    snapshot   id, name, parent, kind, times, layer (a lazy layer's key), usage (once counted)
    label      snapshot_id, key, value
    info       a view of snapshot with the parent's name

`id` names the directory `snapshots/<id>` and is never used twice for a
snapshot that was committed to disk. Every transaction is on disk when it ends
(WAL, synchronous=FULL: one fsync). One process holds the file at a time.

Calls block, for 0.2 ms where the disk is fast and for as long as an fsync
takes where it is not: keep them off the event loop. The object may be used
from any thread; a transaction keeps the others waiting.
"""

from __future__ import annotations

import enum
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

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

APPLICATION_ID = 0x6C796774  # "lygt", in the file's header
SCHEMA_VERSION = 1

_BUSY_SECONDS = 1.0
_WAL_PAGES = 64
"""The log is that long, 256 KiB, and not the usual 4 MiB: an empty cache should leave an empty disk."""
_ADVICE = (
    "stop containerd's use of this snapshotter and move the file away, with `snapshots` beside it; "
    "layers that are complete stay, images that were unpacked are pulled again"
)
_SCHEMA = """
CREATE TABLE snapshot (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    parent     INTEGER REFERENCES snapshot (id) ON DELETE RESTRICT,
    kind       INTEGER NOT NULL CHECK (kind IN (1, 2, 3)),
    created_ns INTEGER NOT NULL,
    updated_ns INTEGER NOT NULL,
    layer      TEXT,
    size       INTEGER,
    inodes     INTEGER
) STRICT;
CREATE INDEX snapshot_parent ON snapshot (parent);
CREATE TABLE label (
    snapshot_id INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    key         TEXT NOT NULL,
    value       TEXT NOT NULL,
    PRIMARY KEY (snapshot_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX label_ref ON label (value) WHERE key = 'containerd.io/snapshot.ref';
CREATE VIEW info AS
    SELECT s.id, s.name, coalesce(p.name, '') AS parent, s.kind, s.created_ns, s.updated_ns,
           s.layer, s.size, s.inodes
    FROM snapshot AS s LEFT JOIN snapshot AS p ON p.id = s.parent;
"""


class Kind(enum.IntEnum):
    """A snapshot's kind, numbered as in containerd's protocol."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """What a snapshot takes of its own: bytes on disk and inodes."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row. `parent` is a name, empty for none; times are nanoseconds since the epoch."""

    id: int
    name: str
    parent: str
    kind: Kind
    created_ns: int
    updated_ns: int
    layer: str | None = None
    usage: Usage | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A link of a snapshot's chain: an ordinary snapshot, or with `layer` a lazy one."""

    id: int
    layer: str | None


class Metadata:
    """The open database. Methods that write must run in a `transaction`.

    Opening raises MetadataInUse, MetadataForeign, MetadataTooNew or
    MetadataCorrupt; every method may raise MetadataError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._translated():
            # Transactions are begun by hand (isolation_level=None); the lock serialises the threads.
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._configure()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Metadata:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Write: everything inside is on disk when the block ends, or nothing if it raises."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite has rolled back by itself after some errors (a full disk).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def get(self, name: str) -> Snapshot:
        """Give the snapshot of that key or name. Raises NotFound."""
        with self._lock, self._translated():
            found = self._snapshots(self._connection.execute("SELECT * FROM info WHERE name = ?", (name,)))
        if not found:
            raise NotFound(f"snapshot {name!r} does not exist")
        return found[0]

    def find_committed(self, ref: str, parent: str) -> Snapshot | None:
        """Give a committed snapshot with that `containerd.io/snapshot.ref` and parent."""
        with self._lock, self._translated():
            found = self._snapshots(
                self._connection.execute(
                    "SELECT info.* FROM label JOIN info ON info.id = label.snapshot_id"
                    " WHERE label.key = 'containerd.io/snapshot.ref' AND label.value = ?"
                    " AND info.parent = ? AND info.kind = 3 ORDER BY info.id LIMIT 1",
                    (ref, parent),
                )
            )
        return found[0] if found else None

    def page(self, after: int, limit: int) -> list[Snapshot]:
        """Give up to `limit` snapshots with ids above `after`, in their order."""
        with self._lock, self._translated():
            return self._snapshots(
                self._connection.execute(
                    "SELECT * FROM info WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
                )
            )

    def chain(self, snapshot_id: int) -> list[Ancestor]:
        """Give a snapshot's ancestors, its parent first."""
        with self._lock, self._translated():
            rows = self._connection.execute(
                "WITH RECURSIVE up (id, depth) AS ("
                "  SELECT parent, 0 FROM snapshot WHERE id = ?"
                "  UNION ALL SELECT s.parent, up.depth + 1 FROM up JOIN snapshot AS s ON s.id = up.id"
                ") SELECT s.id, s.layer FROM up JOIN snapshot AS s ON s.id = up.id ORDER BY up.depth",
                (snapshot_id,),
            )
            return [Ancestor(*row) for row in rows]

    def ids(self) -> set[int]:
        """Give every snapshot's id."""
        with self._lock, self._translated():
            return {row[0] for row in self._connection.execute("SELECT id FROM snapshot")}

    def layers(self) -> set[str]:
        """Give the key of every lazy layer that a snapshot names."""
        with self._lock, self._translated():
            rows = self._connection.execute("SELECT DISTINCT layer FROM snapshot WHERE layer IS NOT NULL")
            return {row[0] for row in rows}

    def layer_users(self) -> list[tuple[str, str]]:
        """Give pairs of a lazy layer's key and the name of a snapshot that needs it.

        Those are the snapshots that name it, and the active and view ones above them.
        """
        with self._lock, self._translated():
            rows = self._connection.execute(
                "WITH RECURSIVE up (name, id) AS ("
                "  SELECT name, id FROM snapshot WHERE kind <> 3"
                "  UNION ALL SELECT up.name, s.parent FROM up JOIN snapshot AS s ON s.id = up.id"
                "   WHERE s.parent IS NOT NULL"
                ") SELECT s.layer, up.name FROM up JOIN snapshot AS s ON s.id = up.id"
                " WHERE s.layer IS NOT NULL"
                " UNION SELECT layer, name FROM snapshot WHERE layer IS NOT NULL"
            )
            return [(row[0], row[1]) for row in rows]

    def insert(
        self,
        name: str,
        *,
        kind: Kind,
        parent: int | None,
        labels: Mapping[str, str],
        now_ns: int,
        layer: str | None = None,
    ) -> int:
        """Add a snapshot, give its id. Raises AlreadyExists if the name is taken."""
        with self._writing(name):
            cursor = self._connection.execute(
                "INSERT INTO snapshot (name, parent, kind, created_ns, updated_ns, layer)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (name, parent, int(kind), now_ns, now_ns, layer),
            )
            assert cursor.lastrowid is not None
            self._write_labels(cursor.lastrowid, labels)
            return cursor.lastrowid

    def commit(self, snapshot_id: int, *, name: str, labels: Mapping[str, str], now_ns: int) -> None:
        """Make an active snapshot a committed one under `name`, with these labels alone.

        Raises AlreadyExists if the name is taken.
        """
        with self._writing(name):
            self._connection.execute(
                "UPDATE snapshot SET name = ?, kind = 3, created_ns = ?, updated_ns = ? WHERE id = ?",
                (name, now_ns, now_ns, snapshot_id),
            )
            self._write_labels(snapshot_id, labels)

    def relabel(self, snapshot_id: int, *, labels: Mapping[str, str], now_ns: int) -> None:
        """Replace a snapshot's labels."""
        with self._writing(""):
            self._connection.execute("UPDATE snapshot SET updated_ns = ? WHERE id = ?", (now_ns, snapshot_id))
            self._write_labels(snapshot_id, labels)

    def count(self, snapshot_id: int, usage: Usage) -> None:
        """Keep what a committed snapshot takes; nothing happens if it is gone by now."""
        with self._writing(""):
            self._connection.execute(
                "UPDATE snapshot SET size = ?, inodes = ? WHERE id = ? AND kind = 3",
                (usage.size, usage.inodes, snapshot_id),
            )

    def delete(self, snapshot: Snapshot) -> None:
        """Forget a snapshot. Raises FailedPrecondition if it is another's parent."""
        with self._lock, self._translated():
            children = self._connection.execute(
                "SELECT EXISTS (SELECT 1 FROM snapshot WHERE parent = ?)", (snapshot.id,)
            )
            if children.fetchone()[0]:
                raise FailedPrecondition(f"cannot remove snapshot {snapshot.name!r}: it has children")
            with self._writing(""):
                self._connection.execute("DELETE FROM snapshot WHERE id = ?", (snapshot.id,))

    def _configure(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA locking_mode = EXCLUSIVE")
        execute("PRAGMA foreign_keys = ON")
        version: int = execute("PRAGMA user_version").fetchone()[0]
        owner: int = execute("PRAGMA application_id").fetchone()[0]
        empty = execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if owner != APPLICATION_ID and not (empty and owner == 0):
            raise MetadataForeign(
                "an SQLite database, but not layergate's: name another root, or move the file away",
                path=self.path,
            )
        if version > SCHEMA_VERSION:
            raise MetadataTooNew(
                f"written by a newer layergate (schema {version}, this one knows {SCHEMA_VERSION}): "
                "install that version again",
                path=self.path,
            )
        os.chmod(self.path, 0o600)  # the log gets the file's mode when it is made
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        # Taking the write lock now is what keeps a second process out (EXCLUSIVE holds it from here on).
        with self.transaction():
            if empty:
                execute(f"PRAGMA application_id = {APPLICATION_ID}")
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    execute(statement)
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        if (verdict := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise MetadataCorrupt(f"damaged ({verdict}): {_ADVICE}", path=self.path)

    def _write_labels(self, snapshot_id: int, labels: Mapping[str, str]) -> None:
        # As in containerd's own stores, a label without a value is no label.
        self._connection.execute("DELETE FROM label WHERE snapshot_id = ?", (snapshot_id,))
        self._connection.executemany(
            "INSERT INTO label (snapshot_id, key, value) VALUES (?, ?, ?)",
            [(snapshot_id, key, value) for key, value in labels.items() if value],
        )

    def _snapshots(self, rows: sqlite3.Cursor) -> list[Snapshot]:
        return [self._snapshot(row) for row in rows.fetchall()]

    def _snapshot(self, row: Sequence[str | int | None]) -> Snapshot:
        snapshot_id, name, parent, kind, created_ns, updated_ns, layer, size, inodes = row
        labels = self._connection.execute(
            "SELECT key, value FROM label WHERE snapshot_id = ?", (snapshot_id,)
        )
        assert isinstance(snapshot_id, int)
        assert isinstance(kind, int)
        assert isinstance(created_ns, int)
        assert isinstance(updated_ns, int)
        return Snapshot(
            id=snapshot_id,
            name=str(name),
            parent=str(parent),
            kind=Kind(kind),
            created_ns=created_ns,
            updated_ns=updated_ns,
            layer=None if layer is None else str(layer),
            usage=Usage(size, inodes) if isinstance(size, int) and isinstance(inodes, int) else None,
            labels=dict(labels.fetchall()),
        )

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        with self._lock:
            assert self._connection.in_transaction, "metadata is written in a transaction"
            try:
                yield
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorname != "SQLITE_CONSTRAINT_UNIQUE":
                    raise
                raise AlreadyExists(f"snapshot {name!r} already exists") from error

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn SQLite's errors into ours: the only place that knows them."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)  # absent from the errors of a closed database
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise MetadataCorrupt(f"damaged ({error}): {_ADVICE}", path=self.path) from error
            if code == sqlite3.SQLITE_BUSY:
                raise MetadataInUse(
                    "in use by another process: is layergate running already?", path=self.path
                ) from error
            raise MetadataError(str(error), path=self.path) from error
