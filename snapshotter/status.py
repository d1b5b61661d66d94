"""What `layergate status` shows: every layer, and counters. The JSON's shape is described in docs/cli.md."""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

import msgspec
from anyio import to_thread

from fetcher.errors import FetchError
from fetcher.progress import Field
from fetcher.store import LayerStore
from mounter.counters import Counters, Latency
from snapshotter.gates import Gates
from snapshotter.streams import State


class LayerStates(Protocol):
    """Who knows what is being done for a layer."""

    def state(self, layer: str) -> tuple[State, str | None]:
        """The layer's state, and why its last try failed."""
        ...


class LayerStatus(msgspec.Struct, frozen=True):
    """One layer. Bytes are compressed bytes, files are regular files with content."""

    digest: str
    layer: str
    state: State
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    images: list[str]
    error: str | None


class FuseStatus(msgspec.Struct, frozen=True):
    """Requests that reached the gate since its process started."""

    lookup: int = 0
    """All lookups; those of directories on the way to a file included."""
    lookup_file: int = 0
    open: int = 0
    read: int = 0
    read_bytes: int = 0


class FetchedBytes(msgspec.Struct, frozen=True):
    """Bytes that came from registries for the layers here, by what they were fetched for."""

    toc: int
    prefetch: int
    on_demand: int
    background: int


class OnDemandStatus(msgspec.Struct, frozen=True):
    """Files that a container waited for; latencies in milliseconds."""

    count: int = 0
    failed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


class MounterProcess(msgspec.Struct, frozen=True):
    """The mounter process; `mode` is gate or stub."""

    pid: int
    mode: str
    generation: str


class Status(msgspec.Struct, frozen=True):
    """The whole answer."""

    layers: list[LayerStatus]
    fuse: FuseStatus
    on_demand: OnDemandStatus
    fetched_bytes: FetchedBytes
    requests: dict[str, int]
    mounter: MounterProcess | None


STATUSES: Final = msgspec.json.Decoder(Status)
"""Decodes the JSON of a Status."""


def _on_demand(counters: Counters, latency: Latency) -> OnDemandStatus:
    return OnDemandStatus(
        count=counters.fetches,
        failed=counters.fetch_failures,
        p50_ms=round(latency.p50 * 1000, 1),
        p99_ms=round(latency.p99 * 1000, 1),
        max_ms=round(latency.max * 1000, 1),
    )


class StatusReader:
    """Gathers a Status; cheap enough to be asked several times a second."""

    def __init__(self, store: LayerStore, states: LayerStates, gates: Gates, requests: Counter[str]) -> None:
        self._store = store
        self._states = states
        self._gates = gates
        self._requests = requests

    async def read(self) -> Status:
        """The status now."""
        mounter = await self._gates.status()
        counters = mounter.counters if mounter else Counters()
        layers, fetched, requests = await to_thread.run_sync(self._layers)
        return Status(
            layers=layers,
            fuse=FuseStatus(
                lookup=counters.lookups_directory + counters.lookups_file + counters.lookups_absent,
                lookup_file=counters.lookups_file,
                open=counters.opens,
                read=counters.reads,
                read_bytes=counters.read_bytes,
            ),
            on_demand=_on_demand(counters, mounter.latency if mounter else Latency()),
            fetched_bytes=fetched,
            requests={
                **self._requests,
                "stream": requests,
                "on_demand": counters.requests,
            },
            mounter=MounterProcess(mounter.pid, mounter.mode, mounter.generation) if mounter else None,
        )

    def _layers(self) -> tuple[list[LayerStatus], FetchedBytes, int]:
        layers: list[LayerStatus] = []
        sums: Counter[Field] = Counter()
        for layer in self._store.layers():
            try:
                record = self._store.record(layer)
                progress = self._store.progress(layer)
            except (FetchError, OSError):
                continue  # removed since it was listed, or damaged, which `cache verify` reports
            values = {one: progress[one] for one in Field}
            progress.close()
            sums.update(values)
            state, error = self._states.state(layer)
            layers.append(
                LayerStatus(
                    digest=record.digest,
                    layer=layer,
                    state=state,
                    bytes_done=values[Field.BYTES_DONE],
                    bytes_total=values[Field.BYTES_TOTAL],
                    files_done=values[Field.FILES_DONE],
                    files_total=values[Field.FILES_TOTAL],
                    images=record.images,
                    error=error,
                )
            )
        fetched = FetchedBytes(
            toc=sums[Field.FETCHED_TOC],
            prefetch=sums[Field.FETCHED_PREFETCH],
            on_demand=sums[Field.FETCHED_ON_DEMAND],
            background=sums[Field.FETCHED_BACKGROUND],
        )
        return layers, fetched, sums[Field.REQUESTS]
