"""What the cache has: each layer's size, state, images and when it was last used. Blocking.

    ROOT/layers/<layer>/used    empty; its modification time is when the layer was last seen in use

A layer that was never seen in use counts from when it came.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from fetcher.errors import FetchError
from fetcher.store import LayerStore
from snapshotter.cache.mounted import layers_in_mounts
from snapshotter.cache.values import CachedLayer, Inventory, LayerState, Leftover, User, UserKind
from snapshotter.directories import disk_usage
from snapshotter.manual.state import ManualMounts

Users = Mapping[str, Collection[User]]
"""Who uses each layer, by layer key."""


def merged_users(*parts: Users) -> dict[str, list[User]]:
    """All users of each layer, each once, by kind and name."""
    users: dict[str, set[User]] = {}
    for part in parts:
        for layer, some in part.items():
            users.setdefault(layer, set()).update(some)
    return {
        layer: sorted(some, key=lambda user: (user.kind.value, user.name)) for layer, some in users.items()
    }


def snapshot_users(named: Iterable[tuple[str, str]]) -> dict[str, list[User]]:
    """The users that snapshots are, from pairs of layer key and snapshot name."""
    users: dict[str, list[User]] = {}
    for layer, name in named:
        users.setdefault(layer, []).append(User(UserKind.SNAPSHOT, name))
    return users


def mount_users(root: str, layers: Collection[str]) -> dict[str, list[User]]:
    """Which of `layers` are needed by a mount, containerd's, a manual one or anybody's. Raises OSError."""
    needed = layers_in_mounts(root, layers)
    for state in ManualMounts(root).all():
        if state.alive():
            for one in state.layers:
                if one.layer in layers:
                    needed.setdefault(one.layer, set()).add(state.mountpoint)
    return {
        layer: [User(UserKind.MOUNT, target) for target in sorted(targets)]
        for layer, targets in needed.items()
    }


class Sizes:
    """Bytes on disk of layers; those of a complete one are counted once. Used by one thread at a time."""

    def __init__(self, store: LayerStore) -> None:
        self._store = store
        self._known: dict[str, int] = {}

    def of(self, layer: str) -> int:
        """What the layer's directory takes. Raises FileNotFoundError if it is gone."""
        if layer not in self._known:
            complete = self._store.is_complete(layer)
            size = disk_usage(self._store.directory(layer)).size
            if not complete:
                return size
            self._known[layer] = size
        return self._known[layer]

    def forget(self, layer: str) -> None:
        """The layer was removed: another life of it is counted anew."""
        self._known.pop(layer, None)


def read_layers(store: LayerStore, users: Users, sizes: Sizes | None) -> list[CachedLayer]:
    """Every layer that is here. Without `sizes`, which walk through incomplete layers, all bytes are 0."""
    found = []
    for layer in store.layers():
        with suppress(FileNotFoundError):  # removed since it was listed
            found.append(_read_layer(store, layer, users.get(layer, ()), sizes))
    return found


def read_inventory(store: LayerStore, users: Users, sizes: Sizes, leftovers: Iterable[Leftover]) -> Inventory:
    """All that is here. Raises OSError."""
    layers = read_layers(store, users, sizes)
    usage = shutil.disk_usage(store.root)
    return Inventory(
        root=store.root,
        layers=layers,
        leftovers=list(leftovers),
        bytes=sum(layer.bytes for layer in layers),
        free_bytes=usage.free,
        size_bytes=usage.total,
    )


def mark_used(store: LayerStore, layers: Iterable[str]) -> None:
    """Take down that these layers are in use now; layers that are not here are left out."""
    for layer in layers:
        path = os.path.join(store.directory(layer), "used")
        with suppress(OSError):  # gone; or a full disk, on which an age that is a minute old will do
            try:
                os.utime(path)
            except FileNotFoundError:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _read_layer(store: LayerStore, layer: str, users: Collection[User], sizes: Sizes | None) -> CachedLayer:
    directory = store.directory(layer)
    digest, images = "", list[str]()
    state = LayerState.COMPLETE if store.is_complete(layer) else LayerState.INCOMPLETE
    try:
        record = store.record(layer)
        digest, images = record.digest, record.images
    except FetchError:
        os.stat(directory)
        state = LayerState.DAMAGED
    return CachedLayer(
        layer=layer,
        digest=digest,
        state=state,
        bytes=sizes.of(layer) if sizes is not None else 0,
        images=images,
        last_used=_last_used(directory),
        used_by=list(users),
    )


def _last_used(directory: str) -> float:
    for name in ("used", "complete", "layer.json"):
        with suppress(FileNotFoundError):
            return os.stat(os.path.join(directory, name)).st_mtime
    return os.stat(directory).st_mtime
