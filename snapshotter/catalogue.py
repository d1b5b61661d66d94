"""Which snapshots there are: rows and directories, kept in step. No event loop.

Here are containerd's rules: which names may be taken, which kinds may become
which, what may be removed. Everything blocks and must be called by one thread
at a time; `snapshotter.snapshots` sees to that.

A directory is made under a temporary name and renamed inside the transaction
that adds its row; a row is deleted first, its directory by a later clean-up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.directories import Directories
from snapshotter.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapshotter.lowers import LazyLink, Link, OrdinaryLink
from snapshotter.metadata import Ancestor, Kind, Metadata, Snapshot, Usage

PAGE = 100
"""Snapshots read, and sent, at a time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A snapshot and what it stands on, its parent first."""

    snapshot: Snapshot
    chain: tuple[Link, ...]


class Catalogue:
    """The rules over a database and the directories that belong to its rows."""

    def __init__(self, metadata: Metadata, directories: Directories) -> None:
        self._metadata = metadata
        self._directories = directories

    def get(self, name: str) -> Snapshot:
        """Give the snapshot of that key or name. Raises NotFound."""
        return self._metadata.get(name)

    def standing(self, key: str) -> Standing:
        """Give an active or view snapshot and its chain. Raises NotFound, FailedPrecondition."""
        snapshot = self._metadata.get(key)
        if snapshot.kind is Kind.COMMITTED:
            raise FailedPrecondition(f"snapshot {key!r} is committed: only active and view ones have mounts")
        return Standing(snapshot, self._chain(snapshot))

    def all_standing(self) -> list[Standing]:
        """Give every active and view snapshot that has a parent."""
        found: list[Standing] = []
        after = 0
        while page := self.page(after):
            after = page[-1].id
            found += [
                Standing(snapshot, self._chain(snapshot))
                for snapshot in page
                if snapshot.kind is not Kind.COMMITTED and snapshot.parent
            ]
        return found

    def page(self, after: int) -> list[Snapshot]:
        """Give the next PAGE snapshots, those with ids above `after`; parents come before children."""
        return self._metadata.page(after, PAGE)

    def layers(self) -> set[str]:
        """Give the key of every lazy layer that a snapshot names."""
        return self._metadata.layers()

    def layer_users(self) -> list[tuple[str, str]]:
        """Give pairs of a lazy layer's key and the name of a snapshot that needs it."""
        return self._metadata.layer_users()

    def create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> Standing:
        """Add an active or view snapshot with its directories.

        Raises AlreadyExists for the key; NotFound or InvalidArgument for the parent.
        """
        self._check_free(key)
        self._committed_parent(parent)
        made = self._directories.make(writable=kind is Kind.ACTIVE)
        try:
            with self._metadata.transaction():
                below = self._committed_parent(parent)
                snapshot_id = self._metadata.insert(
                    key, kind=kind, parent=below.id if below else None, labels=labels, now_ns=time.time_ns()
                )
                self._directories.adopt(made, snapshot_id)
        except BaseException:
            # Once adopted it is an orphan under its new name, which `set_aside` finds.
            self._directories.discard(made)
            raise
        return self.standing(key)

    def check_remote(self, key: str, ref: str, parent: str) -> tuple[Link, ...]:
        """See whether a remote layer is worth opening for `key`; gives what it would stand on, parent first.

        Raises AlreadyExists if it is there already; otherwise as `create` would.
        """
        if self._metadata.find_committed(ref, parent) is not None:
            raise AlreadyExists(f"target snapshot {ref!r} exists")
        self._check_free(key)
        below = self._committed_parent(parent)
        return () if below is None else (_link(below, self._directories), *self._chain(below))

    def create_remote(self, ref: str, parent: str, labels: Mapping[str, str], layer: str) -> Snapshot:
        """Add a committed snapshot of an opened layer.

        containerd looks it up by label and parent, so the name is ours to
        choose. It is the reference itself, as other snapshotters have it, unless
        that is taken: by the same layer on another parent, such as one that
        another namespace had unpacked there.
        """
        with self._metadata.transaction():
            below = self._committed_parent(parent)
            now_ns = time.time_ns()
            name = f"{ref}@{now_ns}" if self._exists(ref) else ref
            self._metadata.insert(
                name,
                kind=Kind.COMMITTED,
                parent=below.id if below else None,
                labels=labels,
                now_ns=now_ns,
                layer=layer,
            )
            return self._metadata.get(name)

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> None:
        """Turn active `key` into committed `name`.

        Raises NotFound, AlreadyExists, FailedPrecondition if `key` is not
        active, InvalidArgument for another parent than its own.
        """
        with self._metadata.transaction():
            snapshot = self._metadata.get(key)
            self._check_free(name)
            if snapshot.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is not active")
            if parent and parent != snapshot.parent:
                raise InvalidArgument(f"the parent of snapshot {key!r} cannot be changed in Commit")
            self._metadata.commit(snapshot.id, name=name, labels=labels, now_ns=time.time_ns())

    def delete(self, key: str) -> Snapshot:
        """Forget a snapshot, give what it was. Raises NotFound, FailedPrecondition."""
        with self._metadata.transaction():
            snapshot = self._metadata.get(key)
            self._metadata.delete(snapshot)
        return snapshot

    def relabel(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Change labels as a field mask says, give the result. Raises NotFound, InvalidArgument."""
        with self._metadata.transaction():
            snapshot = self._metadata.get(name)
            merged = dict(snapshot.labels) if paths else dict(labels)
            for path in paths:
                if path == "labels":
                    merged = dict(labels)
                elif path.startswith("labels."):
                    label = path.removeprefix("labels.")
                    merged[label] = labels.get(label, "")
                else:
                    raise InvalidArgument(
                        f"cannot update {path!r} of snapshot {name!r}: only labels can change"
                    )
            self._metadata.relabel(snapshot.id, labels=merged, now_ns=time.time_ns())
            return self._metadata.get(name)

    def keep_usage(self, snapshot_id: int, usage: Usage) -> None:
        """Keep what a committed snapshot takes."""
        with self._metadata.transaction():
            self._metadata.count(snapshot_id, usage)

    def set_aside(self) -> list[str]:
        """Rename the directories that no row has, give their paths for deletion."""
        return self._directories.set_aside(self._metadata.ids())

    def _chain(self, snapshot: Snapshot) -> tuple[Link, ...]:
        return tuple(_link(below, self._directories) for below in self._metadata.chain(snapshot.id))

    def _exists(self, name: str) -> bool:
        try:
            self._metadata.get(name)
        except NotFound:
            return False
        return True

    def _check_free(self, name: str) -> None:
        if self._exists(name):
            raise AlreadyExists(f"snapshot {name!r} already exists")

    def _committed_parent(self, parent: str) -> Snapshot | None:
        if not parent:
            return None
        try:
            found = self._metadata.get(parent)
        except NotFound as error:
            raise NotFound(f"parent snapshot {parent!r} does not exist") from error
        if found.kind is not Kind.COMMITTED:
            raise InvalidArgument(f"parent {parent!r} is not a committed snapshot")
        return found


def _link(snapshot: Snapshot | Ancestor, directories: Directories) -> Link:
    """A committed snapshot as part of a chain."""
    if snapshot.layer is None:
        return OrdinaryLink(directories.fs(snapshot.id))
    return LazyLink(snapshot.layer)
