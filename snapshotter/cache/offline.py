"""The cache of a node on which no `layergate serve` runs.

The database is held for as long as snapshots have to stay as they are, so `serve` cannot start in that
time, and two of us wait for one another. Deleting comes after. Blocking.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fetcher.store import LayerStore
from mounter.uses import forget_unused
from snapshotter.cache.inventory import (
    Sizes,
    merged_users,
    mount_users,
    read_inventory,
    read_layers,
    snapshot_users,
)
from snapshotter.cache.leftovers import find_leftovers, remove_leftover
from snapshotter.cache.mounted import forget_released_lowers
from snapshotter.cache.plan import plan_clean
from snapshotter.cache.removal import delete_layer, set_aside
from snapshotter.cache.report import Account, left_by
from snapshotter.cache.values import CleanReport, Inventory, Selection
from snapshotter.manual.release import discard_with_orphans
from snapshotter.manual.state import ManualMounts
from snapshotter.metadata import Metadata


class OfflineCache:
    """Implements the cache's operations on a root directory that exists.

    Every method raises MetadataInUse while `serve` runs on it, MetadataError, OSError.
    """

    def __init__(self, root: str) -> None:
        self._store = LayerStore(root)
        self._sizes = Sizes(self._store)

    def inventory(self) -> Inventory:
        """What is here; changes nothing."""
        with self._snapshots(create=False) as (ids, named):
            users = merged_users(snapshot_users(named), mount_users(self._store.root, self._store.layers()))
            return read_inventory(self._store, users, self._sizes, find_leftovers(self._store, ids))

    def clean(self, selection: Selection, *, dry_run: bool) -> CleanReport:
        """Remove what the selection says; with `dry_run` only say what that would be."""
        store = self._store
        account = Account(store.root)
        with self._snapshots(create=not dry_run) as (ids, named):
            users = merged_users(snapshot_users(named), mount_users(store.root, store.layers()))
            layers = read_layers(store, users, self._sizes)
            plan = plan_clean(layers, selection, now=time.time())
            if dry_run:
                return account.report(
                    layers, plan, leftovers=left_by(plan, store, find_leftovers(store, ids)), dry_run=True
                )
            aside = set_aside(store, [layer.layer for layer in plan.remove])
            dead = aside.dead.values()
            leftovers = [leftover for leftover in find_leftovers(store, ids) if leftover.path not in dead]
            for leftover in leftovers:
                account.note(remove_leftover(store, leftover))
            if selection.takes_all_unused:
                discard_with_orphans(ManualMounts(store.root))
            forget_released_lowers(store.root)
            forget_unused(store.root)
        for layer, path in aside.dead.items():
            account.deleted(path, delete_layer(store, layer, path))
            self._sizes.forget(layer)
        return account.report(layers, plan, aside=aside, leftovers=leftovers)

    @contextmanager
    def _snapshots(self, *, create: bool) -> Iterator[tuple[set[int], list[tuple[str, str]]]]:
        """Ids of all snapshots, and the layers that they need; they stay so inside the block."""
        path = os.path.join(self._store.root, "metadata.db")
        if not create and not os.path.exists(path):
            yield set(), []
            return
        with Metadata(path) as metadata:
            yield metadata.ids(), metadata.layer_users()
