"""What `layergate mounts` shows. The JSON's shape is described in docs/cli.md."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from fetcher.errors import StoreError
from fetcher.store import LayerStore
from snapshotter.manual.progress import measure
from snapshotter.manual.state import ManualMounts, MountedLayer, MountState

_ORPHANED = "orphaned"


class ListedMount(msgspec.Struct, frozen=True, kw_only=True):
    """One mount. Bytes are compressed bytes of its layers, files are regular files with content."""

    mountpoint: str
    source: str
    state: str
    """starting, lazy, native; or orphaned: its keeper was killed, and nothing streams for it any more."""
    alone: bool
    """One layer as it is, not merged."""
    rw: str | None
    """The upper directory."""
    keeper: int | None
    """The process id of its keeper."""
    waiting: str | None
    """What has to be unmounted before a complete mount can be swapped."""
    since: str
    layers: list[MountedLayer]
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int


class Listing(msgspec.Struct, frozen=True):
    """All of them."""

    mounts: list[ListedMount]


def list_mounts(root: str) -> Listing:
    """The mounts made by hand that are there, by mountpoint. Blocking; raises OSError."""
    store = LayerStore(root)
    return Listing([_listed(store, state) for state in ManualMounts(root).all() if state.alive()])


def _listed(store: LayerStore, state: MountState) -> ListedMount:
    kept = state.kept()
    try:
        progress = measure(store, [layer.layer for layer in state.layers])
        figures = progress.bytes_done, progress.bytes_total, progress.files_done, progress.files_total
    except (StoreError, OSError):
        figures = 0, 0, 0, 0  # a layer was removed by hand
    return ListedMount(
        mountpoint=state.mountpoint,
        source=state.source,
        state=_ORPHANED if state.keeper is not None and not kept else state.kind.value,
        alone=state.alone,
        rw=state.rw,
        keeper=state.keeper.pid if state.keeper is not None and kept else None,
        waiting=state.waiting,
        since=datetime.fromtimestamp(state.since, UTC).isoformat(timespec="seconds"),
        layers=state.layers,
        bytes_done=figures[0],
        bytes_total=figures[1],
        files_done=figures[2],
        files_total=figures[3],
    )
