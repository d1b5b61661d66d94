"""The composition root of `layergate serve`."""

from __future__ import annotations

import faulthandler
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from fetcher.credentials import docker_config_path
from fetcher.logs import configure_logs, get_logger
from fetcher.sources import BlobSources
from fetcher.stalls import watch_for_stalls
from fetcher.store import LayerStore
from mounter.fork_socket import keep_fork_socket_in
from mounter.forks import start_fork_server
from snapshotter import commands, workers
from snapshotter.admin import AdminService
from snapshotter.cache.keeper import CacheKeeper
from snapshotter.cache.served import ServedCache
from snapshotter.config import Config, load_config
from snapshotter.defaults import DEFAULT_CONFIG
from snapshotter.gates import Gates
from snapshotter.images import Images
from snapshotter.lazy import LazyLowers
from snapshotter.metadata import Metadata
from snapshotter.records.containers import ContainerRecords
from snapshotter.reload import watch_config
from snapshotter.server import serve_grpc
from snapshotter.service import SnapshotsService
from snapshotter.snapshots import Snapshotter
from snapshotter.status import StatusReader
from snapshotter.streams import LayerStreams

log = get_logger("layergate.serve")

_DRAIN_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0


async def serve(*, root: str, address: str, config_path: str | None, level: str | None) -> None:
    """Serve until SIGTERM or SIGINT; containers and the mounter stay. Paths are absolute.

    Raises ConfigError, MetadataError, SocketInUse, SocketUnusable, StoreError.
    """
    config = load_config(config_path)
    configure_logs(level or config.log.level)
    faulthandler.enable()
    store = LayerStore(root)
    store.create_directories()
    requests: Counter[str] = Counter()
    with Metadata(os.path.join(store.root, "metadata.db")) as metadata:
        async with (
            BlobSources(
                config.registry_settings(), on_request=lambda kind: requests.update([kind])
            ) as sources,
            anyio.create_task_group() as tasks,
        ):
            gates = Gates(store.root, config)
            streams = LayerStreams(
                store,
                config,
                completed=lambda _layer: lazy.look(),
                ended=lambda _layer: lazy.look(),
                meta_form=gates.meta_form,
            )

            def opened(layer: str) -> None:
                lazy.announced(layer)
                streams.want(layer)
                tasks.start_soon(_once, gates.expect, layer)

            images = Images(store, sources, tasks, opened=opened)
            lazy = LazyLowers(
                store,
                config,
                images=images,
                streams=streams,
                gates=gates,
                retained=lambda: keeper.wake(),
            )
            records = ContainerRecords(store, config.record)
            snapshotter = Snapshotter(Path(store.root), metadata, lazy, prepared=records.expect)
            cache = ServedCache(
                store, snapshots=snapshotter, layers=lazy, work=streams, openings=images.openings
            )
            keeper = CacheKeeper(store.root, config.cache, cache=cache, streams=streams)

            def apply(changed: Config) -> None:
                configure_logs(level or changed.log.level)
                sources.configure(changed.registry_settings())
                for part in (gates, streams, lazy):
                    part.configure(changed)
                keeper.configure(changed.cache)
                records.configure(changed.record)

            await to_thread.run_sync(keep_fork_socket_in, store.root)
            await to_thread.run_sync(start_fork_server, (*workers.PRELOAD, *commands.PRELOAD))
            tasks.start_soon(watch_for_stalls)
            await tasks.start(streams.run)
            await gates.attach()
            tasks.start_soon(_kept, gates.run)
            standing = await snapshotter.all_standing()
            await lazy.restore((one.snapshot.name, one.chain) for one in standing)
            await snapshotter.retain_layers()
            for part in (lazy, keeper, records):
                tasks.start_soon(_kept, part.run)
            credentials = docker_config_path(config.credentials.docker_config)
            watched = partial(watch_config, config_path or DEFAULT_CONFIG, [credentials], apply)
            tasks.start_soon(_kept, watched)
            service = SnapshotsService(snapshotter)
            admin = AdminService(store.root, lazy, StatusReader(store, streams, gates, requests), cache)
            async with (
                serve_grpc(address, service.register, admin.register),
                commands.serve_commands(address),
            ):
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                    log.info("serving", address=address, root=store.root, pid=os.getpid())
                    await anext(signals)
                log.info("stopping")
            await service.drain(_DRAIN_SECONDS)
            tasks.cancel_scope.cancel()


async def _kept(work: Callable[[], Awaitable[None]]) -> None:
    """Do endless work, and begin it again when a defect has ended it: everything else of serve's goes on."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("work_broken", work=_name(work))
            await anyio.sleep(_AGAIN_SECONDS)
        else:
            return


async def _once(work: Callable[[str], Awaitable[None]], layer: str) -> None:
    """Do something that may as well be left undone: a defect in it ends nothing else of serve's."""
    try:
        await work(layer)
    except Exception:
        log.exception("work_broken", work=_name(work), layer=layer)


def _name(work: Callable[..., object]) -> str:
    function = work.func if isinstance(work, partial) else work
    return getattr(function, "__qualname__", repr(function))
