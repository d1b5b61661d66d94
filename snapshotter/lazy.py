"""The lazy part of the snapshotter: `Lowers` on a layer store, streams and the mounter.

When a lazy lower is released. Mounts that stand on it hold what they need
themselves, so its mount point matters only between our answer and the mount
that follows it. It goes when no snapshot that was given it is left, or when all
its layers are complete and the last answer that named it is `mount_seconds` old.
META of a layer goes with the last lazy lower that has it. Nothing goes that another
process uses (`mounter.uses`): a manual mount may stand on the same layers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio
from anyio import to_thread

from fetcher.errors import FetchError, InvalidReference, NotEstargz
from fetcher.logs import get_logger
from fetcher.progress import Field
from fetcher.store import LayerStore
from mounter.errors import MounterError
from mounter.lowers import Meta, lazy_id, lazy_lowers, mount_lazy_lower
from mounter.meta import metas
from mounter.probe import Mode
from mounter.uses import Uses, release_unused_lower, release_unused_meta
from snapshotter.chains import distinct, lower_parts, split_chain, tree_paths
from snapshotter.config import Config
from snapshotter.directories import disk_usage
from snapshotter.errors import Unavailable
from snapshotter.gates import Gate, Gates
from snapshotter.images import Images
from snapshotter.lowers import LazyLink, Link, Lowerdirs
from snapshotter.placement import why_unfit
from snapshotter.remote import remote_layer
from snapshotter.streams import LayerStreams

log = get_logger("layergate.lazy")

_PULLED_SECONDS: Final = 0.7
"""Background streams yield for so long after a layer was promised: its container may come at once."""
_START_SECONDS: Final = 0.5
"""And for so long after a container's mounts were asked for: it needs processor and link itself."""
_RELEASE_INTERVAL_SECONDS: Final = 5.0
_ANNOUNCED_SECONDS: Final = 60.0
"""How long a layer that was opened ahead is kept for the Prepare that is to come."""


@dataclass(frozen=True, slots=True)
class _Given:
    """A lazy lower that was given to a snapshot, and when (monotonic seconds)."""

    lazy: str | None
    """None where the gate shows trees: then the gate itself is what was given."""
    since: float


class LazyLowers:
    """Implements `snapshotter.lowers.Lowers`; `run` must be running for lazy lowers to be released."""

    def __init__(
        self,
        store: LayerStore,
        config: Config,
        *,
        images: Images,
        streams: LayerStreams,
        gates: Gates,
        retained: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._config = config
        self._images = images
        self._streams = streams
        self._gates = gates
        self._given: dict[str, _Given] = {}
        self._changed = anyio.Event()
        self._mounting = anyio.Lock()
        self._uses = Uses(store.root)
        self._composing = 0
        """Calls of `lowerdirs` under way: they need the gate from when they asked for it."""
        self._usage: dict[str, tuple[int, int]] = {}
        self._busy = False
        """Whether something of which nothing of ours has need was in use by somebody when last looked at."""
        self._retained = retained
        self._announced: dict[str, float] = {}
        self._opened: set[str] = set()
        self._named: AbstractSet[str] = frozenset()

    def configure(self, config: Config) -> None:
        """Take a new configuration."""
        self._config = config

    async def open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        """Open the layer that the labels describe; its key, None if it cannot be lazy. META may follow."""
        settings = self._config.lazy
        if not self._possible():
            return None
        try:
            wanted = remote_layer(labels)
        except InvalidReference as error:
            log.warning("labels_not_understood", error=str(error))
            return None
        if wanted is None:
            return None
        layer, taken = None, False
        try:
            async with self._images.openings.opening(wanted.digest):
                with anyio.fail_after(settings.open_timeout_seconds):
                    wanted = await self._images.completed(wanted)
                    if wanted.toc_digest is None and not settings.allow_unverified_toc:
                        return None
                    layer = await self._images.open(wanted)
                    await self._streams.sound(layer)
                    reason = await to_thread.run_sync(why_unfit, self._store, layer, below)
                if reason is not None:
                    log.info("layer_not_lazy_here", layer=layer, image=wanted.reference, reason=reason)
                    return None
                self._streams.hold(_PULLED_SECONDS)
                self._opened.add(layer)
                self._announced.pop(layer, None)
                taken = True
        except NotEstargz:
            return None
        except TimeoutError:
            log.warning("layer_open_timed_out", digest=wanted.digest, image=wanted.reference)
            return None
        except (FetchError, Unavailable) as error:
            log.warning("layer_not_lazy", digest=wanted.digest, image=wanted.reference, error=str(error))
            return None
        finally:
            if layer is not None and not taken:
                self._turn_down(layer, wanted.digest)
        return layer

    def _turn_down(self, layer: str, digest: str) -> None:
        """It is unpacked the ordinary way: stop bringing it, unless somebody else has it or may yet."""
        self._announced.pop(layer, None)
        if layer not in self._named | self._opened and not self._images.openings.is_opening(digest):
            self._streams.stop(layer)
            self._changed.set()

    async def announce(self, reference: str, manifest: bytes, *, plain_http: bool) -> int:
        """An image is about to be pulled: open its layers; how many may be lazy. Raises FetchError."""
        if not self._possible():
            return 0
        count = self._images.open_image(reference, manifest, plain_http=plain_http)
        if count:
            await self._gates.prepare()
        return count

    def announced(self, layer: str) -> None:
        """The layer was opened ahead of its Prepare."""
        self._announced[layer] = anyio.current_time()

    def expected(self) -> set[str]:
        """Layers that a snapshot is about to name: a Prepare has opened them, or is likely to come."""
        since = anyio.current_time() - _ANNOUNCED_SECONDS
        self._announced = {layer: when for layer, when in self._announced.items() if when > since}
        return self._opened | self._announced.keys()

    def _abandoned(self, gone: AbstractSet[str], announced: Iterable[str]) -> list[str]:
        """Those of `announced` that came with an image of which `gone` have lost their snapshots."""
        images = {image for layer in gone for image in self._images_of(layer)}
        return [layer for layer in announced if not images.isdisjoint(self._images_of(layer))]

    def _images_of(self, layer: str) -> list[str]:
        try:
            return self._store.record(layer).images
        except FetchError:  # it is gone, or damaged
            return []

    def _possible(self) -> bool:
        return self._config.lazy.enabled and self._gates.possible()

    async def lowerdirs(self, key: str, chain: Sequence[Link]) -> Lowerdirs:
        """Native directories where layers are complete, a lazy lower for the rest. Raises Unavailable."""
        native, rest = await to_thread.run_sync(split_chain, self._store, chain)
        if not rest:
            return Lowerdirs(tuple(native))
        layers = [link.layer for link in rest if isinstance(link, LazyLink)]
        pins = Uses(self._store.root)
        self._composing += 1
        self._streams.hold(_START_SECONDS)
        try:
            for layer in layers:
                await to_thread.run_sync(pins.add, layer)
                await self._streams.ready(layer)
            gate = await self._gates.current()
            if gate.mode is Mode.STUB:
                self._given[key] = _Given(None, anyio.current_time())
                trees = os.path.join(self._store.root, "gate")
                return Lowerdirs((*native, *tree_paths(self._store, rest, trees)))
            path = await self._lazy_lower(key, rest, gate)
            await self._gates.warm(await to_thread.run_sync(_likely_missed, self._store, layers))
            return Lowerdirs((*native, path), lazy=True)
        except MounterError as error:
            raise Unavailable(f"snapshot {key!r}: {error}") from error
        finally:
            self._composing -= 1
            pins.close()

    async def _lazy_lower(self, key: str, links: Sequence[Link], gate: Gate) -> str:
        parts = lower_parts(links)
        lazy = lazy_id(parts, gate.generation)
        async with self._mounting:
            await self._use(lazy)
            self._given[key] = _Given(lazy, anyio.current_time())
            return await to_thread.run_sync(mount_lazy_lower, self._store.root, parts, gate.generation)

    async def _use(self, lazy: str) -> None:
        if lazy not in self._uses:
            await to_thread.run_sync(self._uses.add, lazy)

    async def usage(self, layer: str) -> tuple[int, int]:
        """Bytes and inodes of the layer's plain directory; remembered once it is complete."""
        if layer in self._usage:
            return self._usage[layer]
        complete = self._store.is_complete(layer)
        usage = await to_thread.run_sync(disk_usage, self._store.fs(layer))
        if complete:
            self._usage[layer] = usage.size, usage.inodes
        return usage.size, usage.inodes

    async def removed(self, key: str) -> None:
        """The snapshot's lazy lower has one user less."""
        if self._given.pop(key, None) is not None:
            self._changed.set()

    async def retain(self, layers: AbstractSet[str]) -> None:
        """Work on these layers, all of them and no others; what is here of the others stays in the cache."""
        gone = (self._named | self._opened) - layers
        self._opened.clear()  # no Prepare is under way, so each of them has its snapshot or has failed
        if gone and self._announced:
            # A pull was stopped: the layers that it has not come to yet are not to be expected any more.
            for layer in await to_thread.run_sync(self._abandoned, gone, list(self._announced)):
                self._announced.pop(layer, None)
        changed = layers != self._named or bool(gone)
        self._named = frozenset(layers)
        self._streams.keep_only(layers | self.expected())
        for layer in layers:
            if await to_thread.run_sync(self._store.exists, layer):
                self._streams.want(layer)
            elif changed:
                log.error("layer_missing", layer=layer, remedy="remove the image and pull it again")
        self._changed.set()
        if changed:
            self._retained()

    def look(self) -> None:
        """Look for what nothing needs any more: a layer is complete, or nothing is done for it any more."""
        self._changed.set()

    async def restore(self, standing: Iterable[tuple[str, Sequence[Link]]]) -> None:
        """After a start: take over what a predecessor mounted, and go on with what snapshots need.

        `standing` are the active and view snapshots with their chains.
        """
        now = anyio.current_time()
        lowers = await to_thread.run_sync(lazy_lowers, self._store.root)
        for key, chain in standing:
            parts = lower_parts(distinct(chain))
            for lower in lowers:
                if lower.mounted and parts[-len(lower.parts) :] == list(lower.parts):
                    await self._use(lower.id)
                    self._given[key] = _Given(lower.id, now)
        self._changed.set()

    async def run(self) -> None:
        """Release lazy lowers and META as they fall out of use, until cancelled."""
        while True:
            with anyio.move_on_after(_RELEASE_INTERVAL_SECONDS if self._given or self._busy else None):
                await self._changed.wait()
            self._changed = anyio.Event()
            async with self._mounting:
                try:
                    await self._release()
                except (MounterError, OSError) as error:
                    log.error("not_released", error=str(error))

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """Inside the block no lazy lower is mounted, and what nothing needs is released at its end."""
        async with self._mounting:
            yield
            await self._release()

    async def _release(self) -> None:
        """Take away what nothing needs; nothing is mounted meanwhile."""
        root = self._store.root
        self._busy = False
        latest = anyio.current_time() - self._config.lazy.mount_seconds
        given: dict[str | None, float] = {}
        for one in self._given.values():
            given[one.lazy] = max(one.since, given.get(one.lazy, 0.0))
        if given.get(None, latest) < latest:
            self._given = {key: one for key, one in self._given.items() if one.lazy is not None}
        kept: set[str] = set()
        for lower in await to_thread.run_sync(lazy_lowers, root):
            layers = [part.layer for part in lower.parts if isinstance(part, Meta)]
            since = given.get(lower.id)
            passed_on = since is not None and since < latest and all(map(self._store.is_complete, layers))
            if since is None or passed_on or not lower.mounted:
                if lower.id in self._uses:
                    self._uses.drop(lower.id)
                self._given = {key: one for key, one in self._given.items() if one.lazy != lower.id}
                if await to_thread.run_sync(release_unused_lower, root, lower.id):
                    log.info("lazy_lower_released", lazy=lower.id, complete=passed_on)
                else:
                    self._busy = True
            else:
                kept.update(layers)
        for layer in await to_thread.run_sync(metas, root):
            if layer in kept or self._streams.works_on(layer):
                continue
            if await to_thread.run_sync(release_unused_meta, root, layer):
                log.info("meta_released", layer=layer)
            else:
                self._busy = True
        needed = self._given or self._composing or self._streams.works_on_any()
        if self._gates.attached and not needed:
            await self._gates.leave()


def _likely_missed(store: LayerStore, layers: Sequence[str]) -> list[str]:
    """Layers of a container whose files it will miss at its start: incomplete, in an image without an order.

    In one that has it, layers without a prefetch range are those that the recorded container left alone.
    """
    if any(store.progress(layer)[Field.PREFETCH_END] for layer in layers):
        return []
    return [layer for layer in layers if not store.is_complete(layer)]
