"""Opening the layers of an image, all of them together, before containerd asks for them one by one.

The first layer that containerd asks for names its image; the manifest is
fetched once and every layer with a table of contents is opened at the same
time. When containerd comes to the next layer, it is here already.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from fetcher.blob import RegistryBlob
from fetcher.errors import FetchError, NotEstargz, RegistryNotFound
from fetcher.logs import get_logger
from fetcher.manifest import LayerDescriptor, Platform, parse_manifest
from fetcher.memory import return_freed_memory
from fetcher.opening import open_layer
from fetcher.reference import Reference, parse_reference
from fetcher.sources import BlobSources
from fetcher.store import LayerRecord, LayerStore, RegistrySource, layer_key
from snapshotter.mounts import MAX_LOWERS
from snapshotter.openings import Openings
from snapshotter.remote import RemoteLayer

log = get_logger("layergate.images")

_REMEMBERED: Final = 64
"""Manifests kept in memory; each takes some KB."""
_AT_A_TIME: Final = 16
"""Layers of one image that are opened together: the table of contents of one may take 64 MiB as it comes."""
_ASKING_SECONDS: Final = 5.0
"""How long to ask for a manifest that may tell of a table of contents."""
_UNREADABLE_SECONDS: Final = 60.0
"""How long not to ask again for one that could not be had."""


@dataclass(slots=True)
class _Opening:
    """One layer being opened; `done` is set when there is a layer key or a failure."""

    done: anyio.Event = field(default_factory=anyio.Event)
    layer: str = ""
    failure: FetchError | None = None


class Images:
    """Opens layers through one registry client. `opened` is called with each new layer key."""

    def __init__(
        self, store: LayerStore, sources: BlobSources, tasks: TaskGroup, *, opened: Callable[[str], None]
    ) -> None:
        self._store = store
        self._sources = sources
        self._tasks = tasks
        self._opened = opened
        self._manifests: dict[str, tuple[LayerDescriptor, ...]] = {}
        self._asking: dict[str, anyio.Lock] = {}
        self._unreadable: dict[str, float] = {}
        """When, in monotonic seconds, a manifest could not be had."""
        self._openings: dict[tuple[str, str | None], _Opening] = {}
        self._places: dict[str, anyio.Semaphore] = {}
        """By image, so that none can keep another one waiting."""
        self.openings = Openings()
        """Which blobs are being opened: their layers are not removed meanwhile."""

    async def open(self, wanted: RemoteLayer) -> str:
        """The layer key of an opened layer; opens its whole image on the way. Raises FetchError."""
        if wanted.toc_digest is not None:
            layer = layer_key(wanted.digest, wanted.toc_digest)
            if await to_thread.run_sync(self._store.exists, layer):
                await to_thread.run_sync(self._add_source, layer, RegistrySource(wanted.reference))
                return layer
        opening = self._openings.get((wanted.digest, wanted.toc_digest))
        if opening is None:
            size = await self._open_image(wanted)
            opening = self._start(RegistrySource(wanted.reference), wanted.digest, wanted.toc_digest, size)
        await opening.done.wait()
        if opening.failure is not None:
            raise opening.failure
        return opening.layer

    async def completed(self, wanted: RemoteLayer) -> RemoteLayer:
        """The layer with the TOC digest that its image's manifest promises, if the labels have none.

        Of zstd:chunked's annotations only stargz-snapshotter's becomes a label. The manifest counts by its
        digest alone: what a tag names by now need not be what the client resolved. Every layer of an ordinary
        image comes through here, so a registry that does not answer must not hold each of them up.
        """
        if wanted.toc_digest is not None or wanted.manifest_digest is None:
            return wanted
        now = anyio.current_time()
        self._unreadable = {
            key: when for key, when in self._unreadable.items() if when > now - _UNREADABLE_SECONDS
        }
        if wanted.manifest_digest in self._unreadable:
            return wanted
        try:
            with anyio.fail_after(_ASKING_SECONDS):
                layers = await self._layers(
                    RegistrySource(wanted.reference), wanted.manifest_digest, Platform.host()
                )
        except (FetchError, TimeoutError) as error:
            self._unreadable[wanted.manifest_digest] = now
            log.info("manifest_not_readable", image=wanted.reference, error=str(error))
            return wanted
        for layer in layers:
            if layer.digest == wanted.digest:
                return replace(wanted, toc_digest=layer.toc_digest)
        return wanted

    def open_image(self, reference: str, manifest: bytes, *, plain_http: bool) -> int:
        """Begin opening every layer of an image that may be lazy; how many those are.

        Raises InvalidReference, FormatError.
        """
        digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
        layers = parse_manifest(manifest).layers
        self._remember(_key(parse_reference(reference).with_digest(digest), Platform.host()), layers)
        return self._start_all(RegistrySource(reference, plain_http), layers)

    def _add_source(self, layer: str, source: RegistrySource) -> None:
        """Remember that the layer is in this image too; how its registry is spoken to, if known, stays."""
        known = (one.reference for one in _registry_sources(self._store.record(layer)))
        if source.reference not in known:
            self._store.add_sources(layer, [source], [source.reference])

    async def _is_in_this_too(self, source: RegistrySource, digest: str, layer: str) -> None:
        """Keep another source of a layer that is here; containerd may never ask for it by that image."""
        async with self.openings.opening(digest):
            try:
                await to_thread.run_sync(self._add_source, layer, source)
            except FetchError as error:  # it is here all the same
                log.warning("source_not_kept", layer=layer, image=source.reference, error=str(error))
            except Exception:
                # As in `_open`.
                log.exception("source_not_kept", layer=layer, image=source.reference)

    async def _open_image(self, wanted: RemoteLayer) -> int | None:
        """Begin opening the image that `wanted` belongs to; the layer's size, None if that is not known."""
        source = RegistrySource(wanted.reference)
        try:
            layers = await self._layers(source, wanted.manifest_digest, Platform.host())
        except RegistryNotFound as error:
            # The tag may have moved or gone since the client resolved it; the blob may still be there.
            log.info("manifest_not_found", image=wanted.reference, error=str(error))
            return None
        for layer in layers:
            if layer.digest == wanted.digest:
                self._start_all(source, layers)
                return layer.size
        log.info("layer_not_in_manifest", image=wanted.reference, digest=wanted.digest)
        return None

    def _start_all(self, source: RegistrySource, layers: Iterable[LayerDescriptor]) -> int:
        """Begin opening each layer that has a TOC, or note where else it is; how many have one."""
        mountable = islice(layers, MAX_LOWERS)
        lazy = [(layer, layer.toc_digest) for layer in mountable if layer.toc_digest is not None]
        # What takes longest to open, as a rule, begins first: a container waits for all of them.
        for layer, toc_digest in sorted(lazy, key=lambda one: -one[0].size):
            key = layer_key(layer.digest, toc_digest)
            if self._store.exists(key):
                self._tasks.start_soon(self._is_in_this_too, source, layer.digest, key)
            else:
                self._start(source, layer.digest, toc_digest, layer.size)
        return len(lazy)

    async def _layers(
        self, source: RegistrySource, manifest_digest: str | None, platform: Platform
    ) -> tuple[LayerDescriptor, ...]:
        """The layers of an image, from memory where its manifest is known by digest."""
        reference = parse_reference(source.reference)
        if manifest_digest is not None:
            reference = reference.with_digest(manifest_digest)
        key = _key(reference, platform)
        lock = self._asking.setdefault(key, anyio.Lock())
        try:
            async with lock:
                layers = self._manifests.get(key)
                if layers is None:
                    client = await self._sources.client(reference, plain_http=source.plain_http)
                    layers = (await client.manifest(reference, platform=platform)).layers
                    if reference.digest is not None:
                        self._remember(key, layers)
            return layers
        finally:
            if not lock.statistics().tasks_waiting:
                self._asking.pop(key, None)

    def _remember(self, key: str, layers: tuple[LayerDescriptor, ...]) -> None:
        if len(self._manifests) >= _REMEMBERED:
            del self._manifests[next(iter(self._manifests))]
        self._manifests[key] = layers

    def _start(
        self, source: RegistrySource, digest: str, toc_digest: str | None, size: int | None
    ) -> _Opening:
        opening = self._openings.get((digest, toc_digest))
        if opening is None:
            opening = self._openings[digest, toc_digest] = _Opening()
            self._tasks.start_soon(self._open, opening, source, digest, toc_digest, size)
        return opening

    async def _open(
        self,
        opening: _Opening,
        source: RegistrySource,
        digest: str,
        toc_digest: str | None,
        size: int | None,
    ) -> None:
        begun = anyio.current_time()
        image = source.reference
        try:
            reference = parse_reference(image)
            client = await self._sources.client(reference, plain_http=source.plain_http)
            blob = RegistryBlob(client, reference, digest, size)
            async with self._place(image), self.openings.opening(digest):
                opening.layer = await open_layer(
                    self._store,
                    blob,
                    digest=digest,
                    size=size,
                    promised_toc_digest=toc_digest,
                    source=source,
                    image=image,
                )
                self._opened(opening.layer)
            log.info(
                "layer_opened",
                layer=opening.layer,
                digest=digest,
                image=image,
                seconds=round(anyio.current_time() - begun, 3),
            )
        except NotEstargz as error:
            # With the digest of a table of contents the image promised one: something is damaged.
            say = log.info if toc_digest is None else log.warning
            say("layer_not_estargz", digest=digest, image=image, reason=str(error))
            opening.failure = error
        except FetchError as error:
            log.warning("layer_not_opened", digest=digest, image=image, error=str(error))
            opening.failure = error
        except Exception as defect:
            # A defect met by one layer must not end serve: it is unpacked the ordinary way.
            log.exception("layer_not_opened", digest=digest, image=image)
            opening.failure = FetchError(f"{image}: {digest}: {defect!r}")
        finally:
            opening.done.set()
            del self._openings[digest, toc_digest]
        if not self._openings:
            await to_thread.run_sync(return_freed_memory)  # the tables of contents

    @asynccontextmanager
    async def _place(self, image: str) -> AsyncIterator[None]:
        """Be one of the layers of an image that are opened now."""
        places = self._places.setdefault(image, anyio.Semaphore(_AT_A_TIME))
        try:
            async with places:
                yield
        finally:
            if places.value == _AT_A_TIME:
                self._places.pop(image, None)


def _key(reference: Reference, platform: Platform) -> str:
    """Under which an image's layers are remembered."""
    return f"{reference} {platform}"


def _registry_sources(record: LayerRecord) -> Iterator[RegistrySource]:
    return (source for source in record.sources if isinstance(source, RegistrySource))
