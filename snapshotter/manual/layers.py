"""Opening the layers of a source, all together; one that is in the store already costs nothing.

Which table of contents is believed: one that the image's annotation vouches for; that of a file whose bytes
have the digest which the image gives, or which the user named himself; any other one only where the
configuration says so.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import anyio
from anyio import to_thread

from fetcher.errors import (
    FetchError,
    NotEstargz,
    SourceNotFound,
    StoreError,
    VerificationError,
)
from fetcher.footer import LONGEST_FOOTER, parse_footer
from fetcher.opening import open_layer
from fetcher.sniffing import HEAD, describe_blob
from fetcher.store import FileSource, LayerStore, layer_key
from mounter.uses import Uses
from snapshotter.manual.source import SourceImage, SourceLayer


@dataclass(frozen=True, slots=True)
class OpenedLayer:
    """A layer in the store, by key and by its blob's digest."""

    layer: str
    digest: str


class LayerOpener:
    """Opens layers for one mount. Each is in use (`mounter.uses`) from before it is looked for on."""

    def __init__(self, store: LayerStore, uses: Uses, *, allow_unverified_toc: bool) -> None:
        self._store = store
        self._uses = uses
        self._using = anyio.Lock()
        self._allow_unverified_toc = allow_unverified_toc

    async def open(self, image: SourceImage) -> list[OpenedLayer]:
        """Open every layer, in the image's order. Raises the FetchError of the lowest one that has one."""
        opened: dict[int, OpenedLayer | FetchError] = {}

        async def open_one(number: int, layer: SourceLayer) -> None:
            try:
                opened[number] = await self._open(image.name, layer)
            except FetchError as error:
                opened[number] = error

        async with anyio.create_task_group() as tasks:
            for number, layer in enumerate(image.layers):
                tasks.start_soon(open_one, number, layer)
        found = []
        for number in range(len(image.layers)):
            result = opened[number]
            if isinstance(result, FetchError):
                raise result
            found.append(result)
        return found

    async def _open(self, image: str, layer: SourceLayer) -> OpenedLayer:
        if layer.digest is not None and layer.toc_digest is not None:
            key = layer_key(layer.digest, layer.toc_digest)
            await self._use(key)
            if await to_thread.run_sync(self._store.exists, key):
                await to_thread.run_sync(self._store.add_sources, key, [layer.source], [image])
                return OpenedLayer(key, layer.digest)
        try:
            digest = await self._digest(layer)
            while True:
                key = await open_layer(
                    self._store,
                    layer.blob,
                    digest=digest,
                    size=layer.size,
                    promised_toc_digest=layer.toc_digest,
                    source=layer.source,
                    image=image,
                )
                await self._use(key)
                if await to_thread.run_sync(self._store.exists, key):
                    return OpenedLayer(key, digest)
                # A clean-up of the cache was just in time.
        except NotEstargz as error:
            raise NotEstargz(
                f"{_named(layer)} is no eStargz or zstd:chunked layer but {await _kind(layer, error)}"
            ) from error

    async def _digest(self, layer: SourceLayer) -> str:
        """The blob's digest, once its table of contents may be believed."""
        if layer.toc_digest is None:
            await _check_footer(layer)
            if isinstance(layer.source, FileSource):
                return await _file_digest(layer.source.path, layer.digest)
            if not self._allow_unverified_toc:
                raise VerificationError(
                    f"{_named(layer)}: the image vouches for no table of contents of it; "
                    "[lazy] allow_unverified_toc takes it nevertheless"
                )
        assert layer.digest is not None, "only a file is named without its digest"
        return layer.digest

    async def _use(self, key: str) -> None:
        async with self._using:
            if key not in self._uses:
                await to_thread.run_sync(self._uses.add, key)


async def _check_footer(layer: SourceLayer) -> None:
    """Raise NotEstargz before a whole file is read for its digest."""
    tail, size = await layer.blob.tail(LONGEST_FOOTER)
    parse_footer(tail, blob_size=size)


async def _kind(layer: SourceLayer, error: NotEstargz) -> str:
    if "external TOC" in str(error):
        return "one that keeps its table of contents elsewhere, which is not supported"
    tail, size = await layer.blob.tail(LONGEST_FOOTER)
    head = await layer.blob.read(0, min(size, HEAD)) if size else b""
    return describe_blob(head, tail)


async def _file_digest(path: str, expected: str | None) -> str:
    """The digest of a file, 1 s for 1.5 GB. Raises VerificationError if it is not the expected one."""
    digest = await to_thread.run_sync(_hash, path)
    if expected not in (None, digest):
        raise VerificationError(f"{path} has the digest {digest}, and not {expected}")
    return digest


def _hash(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise SourceNotFound(f"there is no file {path}") from None
    except OSError as error:
        raise StoreError(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", errno=error.errno or 0
        ) from error


def _named(layer: SourceLayer) -> str:
    if layer.digest is None:
        assert isinstance(layer.source, FileSource)
        return layer.source.path
    return f"layer {layer.number} ({layer.digest})"
