"""Verifying layers for the command line, and repairing those that need it."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import msgspec

from fetcher.errors import FetchError
from fetcher.sources import BlobSources
from fetcher.store import LayerStore
from snapshotter.cache.repair import repair_layer, repair_toc
from snapshotter.cache.verify import Progress, Verdict, verify_layers
from snapshotter.config import Config


def verified(
    store: LayerStore, layers: Sequence[str], config: Config, *, repair: bool, progress: Progress
) -> list[Verdict]:
    """The verdict on each layer, after the repair if there was one."""
    return [
        _repaired(store, config, verdict, progress) if repair and not verdict.intact else verdict
        for verdict in verify_layers(store, layers, progress)
    ]


def _repaired(store: LayerStore, config: Config, verdict: Verdict, progress: Progress) -> Verdict:
    async def run() -> Verdict:
        found = verdict
        async with BlobSources(config.registry_settings()) as sources:
            if found.error is not None:
                await repair_toc(store, sources, found.layer)
                [found] = verify_layers(store, [found.layer], progress)
            if found.faults:
                await repair_layer(store, sources, found.layer, found.faults)
        return msgspec.structs.replace(found, repaired=True)

    try:
        return anyio.run(run)
    except FetchError as error:
        return msgspec.structs.replace(verdict, error=f"not repaired: {error}")
