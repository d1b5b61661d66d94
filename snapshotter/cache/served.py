"""The cache of a node on which `serve` runs: its operations, in serve's event loop.

A layer goes in three steps. It is decided that nobody needs it; then, while no Prepare can open it, no
lazy lower is mounted and no process of ours works on it, that is looked at once more and the layer is set
aside; then it is deleted. Only the second step holds anybody up, for some milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
from anyio import to_thread

from fetcher.logs import get_logger
from fetcher.store import LayerStore
from mounter.uses import forget_unused
from snapshotter.cache.inventory import (
    Sizes,
    mark_used,
    merged_users,
    mount_users,
    read_inventory,
    read_layers,
    snapshot_users,
)
from snapshotter.cache.leftovers import find_leftovers, remove_leftover
from snapshotter.cache.mounted import forget_released_lowers
from snapshotter.cache.plan import Limits, Plan, plan_clean, plan_limits
from snapshotter.cache.removal import SetAside, delete_layer, set_aside
from snapshotter.cache.report import Account, left_by
from snapshotter.cache.values import CachedLayer, CleanReport, Inventory, Selection, User, UserKind
from snapshotter.manual.release import discard_with_orphans
from snapshotter.manual.state import ManualMounts
from snapshotter.openings import Openings

log = get_logger("layergate.cache")

_PULL = User(UserKind.PULL, "a pull that has begun")


class Snapshots(Protocol):
    """What the cache asks of the snapshotter."""

    async def layer_users(self) -> list[tuple[str, str]]:
        """Pairs of a lazy layer's key and the name of a snapshot that needs it."""
        ...

    async def cleanup(self) -> None:
        """Delete the files of removed snapshots, and `retain_layers`."""
        ...

    async def retain_layers(self) -> bool:
        """Work on all layers that snapshots need, and on no others; False if that has to wait."""
        ...


class Layers(Protocol):
    """What the cache asks of the lazy part."""

    def expected(self) -> set[str]:
        """Layers that a snapshot is about to name."""
        ...

    def still(self) -> AbstractAsyncContextManager[None]:
        """Inside the block no lazy lower is mounted, and what nothing needs is released at its end."""
        ...


class Work(Protocol):
    """What the cache asks of the streams."""

    async def drop(self, layers: Collection[str]) -> None:
        """Stop working on layers; returns when nothing of ours works on them any more."""
        ...


class ServedCache:
    """The operations; one that changes anything at a time."""

    def __init__(
        self, store: LayerStore, *, snapshots: Snapshots, layers: Layers, work: Work, openings: Openings
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._layers = layers
        self._work = work
        self._openings = openings
        self._sizes = Sizes(store)
        self._changing = anyio.Lock()
        self._one_walk = anyio.CapacityLimiter(1)

    async def inventory(self) -> Inventory:
        """What is here; changes nothing. Raises OSError, MetadataError."""
        users = await self._users()
        leftovers = await to_thread.run_sync(find_leftovers, self._store, None)
        return await to_thread.run_sync(
            read_inventory, self._store, users, self._sizes, leftovers, limiter=self._one_walk
        )

    async def clean(self, selection: Selection, *, dry_run: bool) -> CleanReport:
        """Remove what the selection says; with `dry_run` only say what that would be.

        Raises OSError, MetadataError.
        """
        if dry_run:
            account = Account(self._store.root)
            layers, plan = await self._plan(selection)
            leftovers = await to_thread.run_sync(find_leftovers, self._store, None)
            return account.report(layers, plan, leftovers=left_by(plan, self._store, leftovers), dry_run=True)
        async with self._changing:
            account = Account(self._store.root)
            await self._snapshots.cleanup()
            layers, plan = await self._plan(selection)
            aside = await self._remove(plan, account, "asked")
            dead = set(aside.dead.values())
            leftovers = [
                leftover
                for leftover in await to_thread.run_sync(find_leftovers, self._store, None)
                if leftover.path not in dead
            ]
            for leftover in leftovers:
                account.note(await to_thread.run_sync(remove_leftover, self._store, leftover))
            if selection.takes_all_unused:
                await to_thread.run_sync(discard_with_orphans, ManualMounts(self._store.root))
            async with self._layers.still():
                pass  # what a process left that was killed is released at the end of this
            await to_thread.run_sync(forget_released_lowers, self._store.root)
            await to_thread.run_sync(forget_unused, self._store.root)
            return account.report(layers, plan, aside=aside, leftovers=leftovers)

    async def keep(self, limits: Limits, *, free: int) -> Plan:
        """Take down which layers are in use, and remove what the limits say; that plan.

        `free` is what is free on the file system, in bytes. Raises OSError, MetadataError.
        """
        async with self._changing:
            await self._snapshots.retain_layers()
            users = await self._users()
            await to_thread.run_sync(mark_used, self._store, users.keys())
            await to_thread.run_sync(forget_released_lowers, self._store.root)
            count = limits.max_size is not None or free < limits.min_free
            layers = await self._read(users, sizes=count)
            plan = plan_limits(layers, limits, free=free, now=time.time())
            if plan.remove:
                await self._remove(plan, Account(self._store.root), "limits")
            return plan

    async def _plan(self, selection: Selection) -> tuple[Sequence[CachedLayer], Plan]:
        layers = await self._read(await self._users(), sizes=True)
        return layers, plan_clean(layers, selection, now=time.time())

    async def _read(self, users: dict[str, list[User]], *, sizes: bool) -> list[CachedLayer]:
        return await to_thread.run_sync(
            read_layers, self._store, users, self._sizes if sizes else None, limiter=self._one_walk
        )

    async def _users(self) -> dict[str, list[User]]:
        named = snapshot_users(await self._snapshots.layer_users())
        pulls = {layer: [_PULL] for layer in self._layers.expected()}
        mounts = await to_thread.run_sync(self._mount_users)
        return merged_users(named, pulls, mounts)

    def _mount_users(self) -> dict[str, list[User]]:
        return mount_users(self._store.root, self._store.layers())

    async def _remove(self, plan: Plan, account: Account, reason: str) -> SetAside:
        aside = await self._set_aside(plan.remove)
        sizes = {layer.layer: layer for layer in plan.remove}
        for layer, path in aside.dead.items():
            failure = await to_thread.run_sync(delete_layer, self._store, layer, path)
            account.deleted(path, failure)
            self._sizes.forget(layer)
            log.info(
                "layer_removed",
                layer=layer,
                digest=sizes[layer].digest,
                bytes=sizes[layer].bytes,
                reason=reason,
                failure=failure,
            )
        return aside

    async def _set_aside(self, layers: Sequence[CachedLayer]) -> SetAside:
        """Nobody begins to use any of `layers` meanwhile, so the answer to who uses one stays true."""
        if not layers:
            return SetAside()
        with self._openings.removing({layer.digest for layer in layers}) as free:
            named = snapshot_users(await self._snapshots.layer_users())
            expected = self._layers.expected()
            kept: dict[str, list[User]] = {}
            unused: list[str] = []
            for layer in layers:
                if layer.layer in named:
                    kept[layer.layer] = named[layer.layer]
                elif layer.layer in expected or layer.digest not in free:
                    kept[layer.layer] = [_PULL]
                else:
                    unused.append(layer.layer)
            await self._work.drop(unused)
            async with self._layers.still():
                aside = await to_thread.run_sync(set_aside, self._store, unused)
        return SetAside(aside.dead, {**kept, **aside.kept})
