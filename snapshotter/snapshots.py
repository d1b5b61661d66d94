"""The snapshotter: containerd's `snapshots.Snapshotter`, with remote snapshots.

    Prepare(key, parent)  ->  active  --Commit(name, key)-->  committed  <--  View(key, parent)
                                 |                                |
                              Remove                  Remove, once it has no children

An ordinary snapshot has a directory of its own. A remote one is committed in
Prepare without ever having been unpacked: it has a layer key instead, and what
stands on it is mounted by way of `Lowers`.

Concurrency: the methods run on one event loop. The catalogue runs in one
thread, one call after the other; counting and deleting files, which may take
seconds, in others. Calls about one key wait for one another, and so do Prepares
of one remote layer. No method may be cancelled once begun, or a key's lock is
let go while its work still runs: the gRPC service sees to that.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from fetcher.logs import get_logger
from snapshotter.catalogue import Catalogue, Standing
from snapshotter.directories import Directories, disk_usage
from snapshotter.errors import AlreadyExists, InvalidArgument
from snapshotter.filters import FieldPath, Fields, parse_filters
from snapshotter.locks import KeyedLock
from snapshotter.lowers import Link, Lowerdirs, Lowers, OrdinaryLink
from snapshotter.metadata import Kind, Metadata, Snapshot, Usage
from snapshotter.mounts import Mount, compose
from snapshotter.remote import SNAPSHOT_REF

log = get_logger("layergate.snapshotter")

_T = TypeVar("_T")

Prepared = Callable[[str, str, Sequence[Link]], None]
"""Told of an active snapshot that is no unpacking: upper directory, parent, and the chain from there."""


def _nobody(upper: str, parent: str, chain: Sequence[Link]) -> None:
    """Nobody wants to know."""


class Snapshotter:
    """Implements containerd's snapshotter on ROOT/snapshots and a database.

    Its methods raise the tree of `snapshotter.errors`, with containerd's
    meaning of each; OSError where the disk refuses.
    """

    def __init__(
        self, root: Path, metadata: Metadata, lowers: Lowers, *, prepared: Prepared = _nobody
    ) -> None:
        self._lowers = lowers
        self._prepared = prepared
        self._directories = Directories(str(root / "snapshots"))
        self._catalogue = Catalogue(metadata, self._directories)
        self._index_off = os.path.exists("/sys/module/overlay/parameters/index")
        self._one_thread = anyio.CapacityLimiter(1)
        self._walks = anyio.CapacityLimiter(2)
        self._keys = KeyedLock()
        self._refs = KeyedLock()
        self._cleaning = anyio.Lock()
        self._retaining = anyio.Lock()
        self._opening = 0

    async def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Make an active snapshot on `parent` (empty: on nothing), give its mounts.

        With the label `containerd.io/snapshot.ref` a remote layer is tried
        first; AlreadyExists then says that a committed snapshot with that label
        and parent is there, and nothing needs to be unpacked.

        Raises AlreadyExists for a key that is taken, NotFound for a missing
        parent, InvalidArgument for one that is not committed, and what
        `Lowers` raises.
        """
        _require(key, "key")
        if ref := labels.get(SNAPSHOT_REF):
            await self._prepare_remote(key, ref, parent, labels)
        return await self._create(Kind.ACTIVE, key, parent, labels)

    async def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """Make a read-only snapshot on `parent`, give its mounts. Raises as `prepare` does."""
        _require(key, "key")
        return await self._create(Kind.VIEW, key, parent, labels)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        """Give the mounts of an active or view snapshot again.

        Raises NotFound, and FailedPrecondition for a committed one.
        """
        async with self._keys.held(key):
            standing = await self._run(self._catalogue.standing, key)
            return self._compose(standing.snapshot, await self._lowerdirs(standing))

    async def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Turn active snapshot `key` into the committed `name`, with these labels alone.

        It reads no files: containerd waits for it inside a transaction of its
        own. Raises NotFound, AlreadyExists for a name that is taken,
        FailedPrecondition if `key` is not active, InvalidArgument if `parent`
        is given and not the one it has (we offer no rebase).
        """
        _require(name, "name")
        async with self._keys.held(key):
            await self._run(self._catalogue.commit, name, key, labels, parent)
            await self._went_away(key)

    async def remove(self, key: str) -> None:
        """Forget a snapshot; `cleanup` deletes its files.

        Raises NotFound, FailedPrecondition if another stands on it.
        """
        async with self._keys.held(key):
            snapshot = await self._run(self._catalogue.delete, key)
            if snapshot.kind is not Kind.COMMITTED:
                await self._went_away(key)

    async def stat(self, key: str) -> Snapshot:
        """Give what is known of a snapshot. Raises NotFound."""
        return await self._run(self._catalogue.get, key)

    async def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str] = ()) -> Snapshot:
        """Change labels, give the result. Raises NotFound, InvalidArgument.

        Without `paths` all labels are replaced; with them those named by
        `labels.<key>`, or all by `labels`. An empty value deletes a label.
        """
        return await self._run(self._catalogue.relabel, name, labels, paths)

    async def walk(self, filters: Sequence[str] = ()) -> AsyncIterator[list[Snapshot]]:
        """Give matching snapshots, a few at a time, parents before children.

        Nothing is held between two yields. Raises InvalidFilter.
        """
        wanted = parse_filters(filters)
        after = 0
        while page := await self._run(self._catalogue.page, after):
            after = page[-1].id
            if matching := [snapshot for snapshot in page if wanted.matches(_fields(snapshot))]:
                yield matching

    async def usage(self, key: str) -> Usage:
        """Give what a snapshot itself takes. Raises NotFound.

        An active one is counted each time, a committed one the first time; a
        lazy layer takes what has been fetched of it.
        """
        snapshot = await self._run(self._catalogue.get, key)
        if snapshot.layer is not None:
            return Usage(*await self._lowers.usage(snapshot.layer))
        if snapshot.usage is not None or snapshot.kind is Kind.VIEW:
            return snapshot.usage or Usage()
        usage = await anyio.to_thread.run_sync(
            disk_usage, self._directories.fs(snapshot.id), limiter=self._walks
        )
        if snapshot.kind is Kind.COMMITTED:
            await self._run(self._catalogue.keep_usage, snapshot.id, usage)
        return usage

    async def cleanup(self) -> None:
        """Delete the files of snapshots that were removed, and what a crash left.

        What cannot be deleted now is logged and left for the next time.
        """
        async with self._cleaning:
            for path in await self._run(self._catalogue.set_aside):
                reason = await anyio.to_thread.run_sync(self._directories.delete, path, limiter=self._walks)
                if reason is not None:
                    log.warning("directory_not_deleted", path=path, reason=reason)
            await self.retain_layers()

    async def retain_layers(self) -> bool:
        """Tell `Lowers` which layers are in use; False if a layer is just being opened.

        Such a layer is not in the database yet, so this waits for another time.
        """
        async with self._retaining:
            if self._opening:
                log.info("layers_kept", reason="a layer is being opened")
                return False
            await self._lowers.retain(await self._run(self._catalogue.layers))
            return True

    async def layer_users(self) -> list[tuple[str, str]]:
        """Give pairs of a lazy layer's key and the name of a snapshot that needs it."""
        return await self._run(self._catalogue.layer_users)

    async def all_standing(self) -> list[Standing]:
        """Give every active and view snapshot that has a parent, with its chain."""
        return await self._run(self._catalogue.all_standing)

    async def _prepare_remote(self, key: str, ref: str, parent: str, labels: Mapping[str, str]) -> None:
        """Raise AlreadyExists if the layer is there, or could be had without unpacking it."""
        async with self._refs.held(f"{ref}\n{parent}"):
            below = await self._run(self._catalogue.check_remote, key, ref, parent)
            async with self._retaining:
                self._opening += 1
            try:
                layer = await self._open_layer(labels, below)
                if layer is None:
                    return
                snapshot = await self._run(self._catalogue.create_remote, ref, parent, labels, layer)
            finally:
                self._opening -= 1
        log.info("remote_snapshot", name=snapshot.name, parent=parent, layer=layer)
        raise AlreadyExists(f"target snapshot {ref!r}: there is no need to unpack it")

    async def _open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        try:
            return await self._lowers.open_layer(labels, below)
        except Exception:
            # Whatever is wrong with the lazy part, the layer can still be unpacked the ordinary way.
            log.exception("open_layer_failed")
            return None

    async def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Mount, ...]:
        async with self._keys.held(key):
            standing = await self._run(self._catalogue.create, kind, key, parent, labels)
            try:
                lowers = await self._lowerdirs(standing)
                if standing.chain and isinstance(below := standing.chain[0], OrdinaryLink):
                    # A lazy layer's root may be anybody's, as its author chose; containerd passes over that.
                    await self._run(self._directories.take_owner, standing.snapshot.id, below.path)
                mounts = self._compose(standing.snapshot, lowers)
            except BaseException:
                # Nobody was told of it, so nobody would remove it.
                await self._run(self._catalogue.delete, key)
                await self._went_away(key)
                raise
        if kind is Kind.ACTIVE and parent and SNAPSHOT_REF not in labels:
            self._prepared(self._directories.fs(standing.snapshot.id), parent, standing.chain)
        return mounts

    async def _lowerdirs(self, standing: Standing) -> Lowerdirs:
        if not standing.chain:
            return Lowerdirs(())
        return await self._lowers.lowerdirs(standing.snapshot.name, standing.chain)

    def _compose(self, snapshot: Snapshot, lowers: Lowerdirs) -> tuple[Mount, ...]:
        active = snapshot.kind is Kind.ACTIVE
        return compose(
            upper=self._directories.fs(snapshot.id),
            work=self._directories.work(snapshot.id) if active else None,
            lowers=lowers,
            index_off=self._index_off,
        )

    async def _went_away(self, key: str) -> None:
        try:
            await self._lowers.removed(key)
        except Exception:
            # The row is gone and stays gone; an error would end containerd's whole garbage collection.
            log.exception("lowers_not_released", key=key)

    async def _run(self, work: Callable[..., _T], *arguments: object) -> _T:
        """Call the catalogue in its thread: an fsync may take any time."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self._one_thread)


def _require(value: str, what: str) -> None:
    if not value:
        raise InvalidArgument(f"a snapshot's {what} must not be empty")


def _fields(snapshot: Snapshot) -> Fields:
    """Show a snapshot to a filter: name, parent, kind, labels.KEY."""

    def value(path: FieldPath) -> str | None:
        match path[0]:
            case "name":
                return snapshot.name
            case "parent":
                return snapshot.parent
            case "kind":
                return snapshot.kind.name.lower()
            case "labels":
                return snapshot.labels.get(".".join(path[1:]))
        return None

    return value
