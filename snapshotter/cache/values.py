"""What the cache's commands speak of: layers, who uses them, what is to go. Values alone; also their JSON.

The JSON's shape is described in docs/cli.md: fields are added, never renamed.
Sizes are bytes on disk, times seconds since the epoch.
"""

from __future__ import annotations

import enum

import msgspec


class UserKind(enum.Enum):
    """What uses a layer."""

    SNAPSHOT = "snapshot"
    """A snapshot of containerd's; `name` is its key or name."""
    MOUNT = "mount"
    """A mount; `name` is where."""
    PULL = "pull"
    """A pull that has begun; `name` is the image."""
    PROCESS = "process"
    """A process that works on the layer now; `name` says at what."""


class User(msgspec.Struct, frozen=True):
    """Somebody who needs a layer to stay."""

    kind: UserKind
    name: str


class LayerState(enum.Enum):
    """How much of a layer is here."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"
    """Its record cannot be read; `digest` is empty then."""


class CachedLayer(msgspec.Struct, frozen=True):
    """One layer directory."""

    layer: str
    digest: str
    state: LayerState
    bytes: int
    images: list[str]
    last_used: float
    used_by: list[User]


class Leftover(msgspec.Struct, frozen=True):
    """Something that a crash left and nobody needs; `kind` is for people."""

    kind: str
    path: str


class Inventory(msgspec.Struct, frozen=True):
    """All that is here. `free_bytes` and `size_bytes` are of the file system that ROOT is on."""

    root: str
    layers: list[CachedLayer]
    leftovers: list[Leftover]
    bytes: int
    free_bytes: int
    size_bytes: int


class Selection(msgspec.Struct, frozen=True):
    """What `cache clean` is to remove; the defaults say: every unused layer.

    `layers` are digests, beginnings of digests or layer keys. `older_than` (seconds) and `to_size` (bytes)
    narrow the unused ones.
    """

    everything: bool = False
    images: list[str] = []
    layers: list[str] = []
    older_than: float | None = None
    to_size: int | None = None

    @property
    def takes_all_unused(self) -> bool:
        """Whether every layer goes that may."""
        named = self.images or self.layers
        return self.everything or not (named or self.older_than is not None or self.to_size is not None)


class Problem(msgspec.Struct, frozen=True):
    """Something that could not be done about `path`."""

    path: str
    reason: str


class CleanReport(msgspec.Struct, frozen=True):
    """What `cache clean` did, or would do if `dry_run`.

    `kept` are layers that were named and are in use, `unknown` names that no layer has. `done` is false
    if something that was asked for was not done. `freed_bytes` is the difference of the file system's own
    figures, before and after. `orphaned` are manual mounts whose keeper was killed, by mountpoint; their
    layers go with them if all that is unused was to go.
    """

    dry_run: bool
    removed: list[CachedLayer]
    kept: list[CachedLayer]
    unknown: list[str]
    leftovers: list[Leftover]
    problems: list[Problem]
    freed_bytes: int
    bytes_left: int
    done: bool
    orphaned: list[str] = []
