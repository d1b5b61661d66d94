"""From a wish to the chain of layers that it means, opened and in use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from fetcher.errors import SourceNotFound
from fetcher.manifest import Platform
from fetcher.sources import BlobSources
from fetcher.store import LayerStore
from mounter.meta import meta_path
from mounter.uses import Uses
from snapshotter.chains import distinct
from snapshotter.config import Config
from snapshotter.lowers import LazyLink
from snapshotter.manual.attributes import has_plain_root, make_above, taken_over
from snapshotter.manual.layers import LayerOpener, OpenedLayer
from snapshotter.manual.request import MountRequest
from snapshotter.manual.source import pick_layer, resolve_source
from snapshotter.manual.state import ManualMounts
from snapshotter.manual.views import Wanted, make_below


async def open_wanted(
    store: LayerStore, uses: Uses, request: MountRequest, config: Config
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


def lay_around(store: LayerStore, mounts: ManualMounts, request: MountRequest, wanted: Wanted) -> Wanted:
    """The same with directories for what has to lie below and above the layers, if anything.

    Blocking, and cheaper once the layers have META. Raises FetchError, OSError.
    """
    if wanted.raw:
        return wanted
    return dataclasses.replace(
        wanted,
        above=_lay_above(store, mounts.above(request.id), wanted),
        below=_lay_below(store, mounts.below(request.id), wanted),
    )


def _lay_below(store: LayerStore, directory: str, wanted: Wanted) -> str | None:
    lowest = wanted.chain[-1].layer
    whiteouts = store.shape(lowest).whiteouts
    if len(wanted.chain) > 1 and not whiteouts:
        return None
    make_below(directory, store.tree(lowest) if whiteouts else None)
    return directory


def _lay_above(store: LayerStore, directory: str, wanted: Wanted) -> str | None:
    if wanted.alone:
        return None
    layers = [link.layer for link in wanted.chain]
    top = store.fs(layers[0]) if store.is_complete(layers[0]) else meta_path(store.root, layers[0])
    if all(store.shape(layer).implied == [] for layer in layers[:-1]) and has_plain_root(top):
        return None
    directories = taken_over([store.tree(layer) for layer in layers])
    if not directories:
        return None
    make_above(directory, directories)
    return directory
