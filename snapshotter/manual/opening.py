"""From a wish to the chain of layers that it means, opened and in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fetcher.errors import SourceNotFound
from fetcher.manifest import Platform
from fetcher.reference import short_digest
from fetcher.sources import BlobSources
from fetcher.store import LayerStore
from mounter.uses import Uses
from snapshotter.chains import distinct
from snapshotter.config import Config
from snapshotter.lowers import LazyLink
from snapshotter.manual.layers import LayerOpener, OpenedLayer
from snapshotter.manual.request import MountRequest
from snapshotter.manual.source import pick_layer, resolve_source
from snapshotter.manual.state import ManualMounts
from snapshotter.manual.views import Wanted, make_below
from snapshotter.placement import why_unfit


async def open_wanted(
    store: LayerStore, mounts: ManualMounts, uses: Uses, request: MountRequest, config: Config
) -> tuple[Sequence[OpenedLayer], Wanted]:
    """Open the layers, from the lowest up, and say what is to be seen of them.

    Raises FetchError, NoSuchLayer, OSError.
    """
    platform = Platform.parse(request.platform) if request.platform else Platform.host()
    async with BlobSources(config.registry_settings()) as sources:
        image = await resolve_source(request.source, platform, sources, plain_http=request.plain_http)
        if request.layer is not None:
            image = pick_layer(image, request.layer)
        if not image.layers:
            raise SourceNotFound(f"{image.name} has no layers")
        opener = LayerOpener(store, uses, allow_unverified_toc=config.lazy.allow_unverified_toc)
        opened = await opener.open(image)
    chain = tuple(distinct([LazyLink(one.layer) for one in reversed(opened)]))
    return opened, Wanted(chain, request.layer is not None, request.rw)


def lay_below(store: LayerStore, mounts: ManualMounts, request: MountRequest, wanted: Wanted) -> Wanted:
    """The same with a directory for what has to lie below the lowest layer, if anything.

    Blocking, and cheaper once the layers have META. Raises FetchError, OSError.
    """
    if wanted.raw:
        return wanted
    lowest = wanted.chain[-1].layer
    whiteouts = store.shape(lowest).whiteouts
    if len(wanted.chain) > 1 and not whiteouts:
        return wanted
    below = mounts.below(request.id)
    make_below(below, store.tree(lowest) if whiteouts else None)
    return dataclasses.replace(wanted, below=below)


def differences(store: LayerStore, wanted: Wanted) -> list[str]:
    """What a merged tree shows otherwise than an unpacked image, for people. Blocking; raises FetchError."""
    found = []
    for number, link in enumerate(wanted.chain[:-1], start=1):
        reason = why_unfit(store, link.layer, wanted.chain[number:])
        if reason is not None:
            digest = short_digest(store.record(link.layer).digest)
            found.append(f"layer {digest}: {reason}; its own are shown")
    return found
