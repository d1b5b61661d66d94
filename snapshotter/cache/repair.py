"""Fetching again what is wrong in a layer, while containers may be running on it.

    take the layer's streaming lock      nobody streams it, nobody removes it
    distrust it                          no completion mark: new containers get it lazily
    fetch into layers/<layer>/repair     verified as ever
    rename over what is wrong            what is open stays as it was
    trust it again                       completion mark

If that ends half-way the layer stays distrusted: whoever streams it next verifies it as a whole first.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.errors import FetchError, StoreError
from fetcher.footer import LONGEST_FOOTER, parse_footer
from fetcher.plain import PlainLayer
from fetcher.replacing import Replacement
from fetcher.sources import BlobSources
from fetcher.store import LayerRecord, LayerStore
from fetcher.toc import unpack_toc, verified_toc
from mounter.uses import Uses
from snapshotter.cache.removal import not_worked_on
from snapshotter.cache.verify import Fault


class LayerBusy(FetchError):
    """Somebody streams, repairs or removes the layer now."""


async def repair_layer(store: LayerStore, sources: BlobSources, layer: str, faults: Sequence[Fault]) -> None:
    """Fetch the faulty paths of a layer again and put them in place. Raises LayerBusy, FetchError."""
    uses = Uses(store.root)
    await to_thread.run_sync(uses.add, layer)
    try:
        with not_worked_on(store, layer) as free:
            if not free or not store.exists(layer):
                raise LayerBusy("it is being streamed, repaired or removed now: try again later")
            complete = store.is_complete(layer)
            store.distrust(layer)
            await _replace(store, sources, layer, [fault.path for fault in faults])
            store.mark_boot(layer)
            if complete:
                store.mark_complete(layer)
    finally:
        uses.close()


async def repair_toc(store: LayerStore, sources: BlobSources, layer: str) -> None:
    """Fetch the layer's table of contents again. Raises FetchError."""
    record = store.record(layer)

    async def fetch(blob: Blob) -> None:
        tail = await blob.read(record.toc_offset, record.size)
        footer = parse_footer(tail[-LONGEST_FOOTER:], blob_size=record.size)
        store.replace_toc(layer, verified_toc(unpack_toc(tail[: -footer.size]), record.toc_digest))

    await _from_any_source(sources, record, fetch)


async def _replace(store: LayerStore, sources: BlobSources, layer: str, paths: Sequence[str]) -> None:
    plain = PlainLayer(store.fs(layer), store.tree(layer))
    nodes = [plain.tree.nodes[path] for path in paths]
    staging = os.path.join(store.directory(layer), "repair")
    replacement = Replacement(plain, nodes, staging=staging)
    replacement.remove()  # what a process left that was killed in here
    try:
        if any(node.chunks for node in nodes):
            await _from_any_source(sources, store.record(layer), replacement.fetch)
        await to_thread.run_sync(replacement.put_in_place)
    finally:
        replacement.remove()


async def _from_any_source(
    sources: BlobSources, record: LayerRecord, fetch: Callable[[Blob], Awaitable[None]]
) -> None:
    """Have `fetch` done from the first source that can; raises what the last one failed with."""
    failure: FetchError = StoreError("the layer has no source to fetch it from", errno=0)
    for source in record.sources:
        try:
            await fetch(await sources.blob(source, record))
        except FetchError as error:
            # Whatever is wrong with one source, bytes that are not the layer's included.
            failure = error
            continue
        return
    raise failure
