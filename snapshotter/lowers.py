"""The seam between the snapshotter and the lazy part.

The snapshotter keeps names, kinds and parents; which directories a container's
overlay stands on is the business of whoever implements `Lowers`. Ordinary
snapshots need nothing of it: `NoLowers` is a snapshotter without lazy layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from snapshotter.errors import Unavailable


@dataclass(frozen=True, slots=True)
class OrdinaryLink:
    """A committed snapshot that was unpacked here; `path` is its directory."""

    path: str


@dataclass(frozen=True, slots=True)
class LazyLink:
    """A committed snapshot of a lazy layer; `layer` is its layer key."""

    layer: str


Link = OrdinaryLink | LazyLink


@dataclass(frozen=True, slots=True)
class Lowerdirs:
    """What an overlay is mounted on, uppermost first.

    `lazy` says that a path is itself an overlay, which the overlay on top must
    know: its inode numbers come from more than one file system.
    """

    paths: tuple[str, ...]
    lazy: bool = False


class Lowers(Protocol):
    """Opens remote layers and turns chains of snapshots into lower directories.

    Every call comes from the event loop. Calls about one key never overlap.
    """

    async def open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        """Open the remote layer that a Prepare's labels describe; give its layer key.

        `below` is what it is to stand on, the uppermost link first. None means
        that it must be unpacked the ordinary way: the labels describe no layer,
        it is no lazy one, it cannot be had now, or it would look different
        there. It logs its own failures. The layer must stay until `retain` is
        called without it.
        """
        ...

    async def lowerdirs(self, key: str, chain: Sequence[Link]) -> Lowerdirs:
        """Give what active or view snapshot `key` stands on, mounting what that needs.

        `chain` is never empty; the uppermost link comes first. It is asked
        again at each Mounts of the key, after a restart too. Raises
        Unavailable.
        """
        ...

    async def usage(self, layer: str) -> tuple[int, int]:
        """Give what a lazy layer takes on this disk now: bytes and inodes."""
        ...

    async def removed(self, key: str) -> None:
        """Let go of what `lowerdirs` keeps for `key`: it was removed, or committed.

        Also called for keys that `lowerdirs` never saw.
        """
        ...

    async def retain(self, layers: AbstractSet[str]) -> None:
        """Let go of every layer but `layers`, those that a snapshot names.

        No `open_layer` runs meanwhile, and Prepare of remote layers waits: set
        aside first, delete afterwards.
        """
        ...


class NoLowers:
    """The lazy part of a snapshotter that has none."""

    async def open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        """Nothing is lazy."""
        return None

    async def lowerdirs(self, key: str, chain: Sequence[Link]) -> Lowerdirs:
        """Give the directories themselves. Raises Unavailable for a lazy link."""
        paths = []
        for link in chain:
            if isinstance(link, LazyLink):
                raise Unavailable(
                    f"snapshot {key!r} stands on the lazy layer {link.layer}, and lazy layers are off"
                )
            paths.append(link.path)
        return Lowerdirs(tuple(paths))

    async def usage(self, layer: str) -> tuple[int, int]:
        """Nothing of it is here."""
        return 0, 0

    async def removed(self, key: str) -> None:
        """Nothing is kept."""

    async def retain(self, layers: AbstractSet[str]) -> None:
        """Nothing is kept."""
