"""Which layers are to go. Pure: what is here in, decisions out; nothing is removed by it.

Two rules hold for every decision: a layer that somebody uses stays, and layers
go whole, the least recently used first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from snapshotter.cache.values import CachedLayer, Selection


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order. `kept` was named but is in use; `excess` bytes stay that should have gone."""

    remove: tuple[CachedLayer, ...]
    kept: tuple[CachedLayer, ...] = ()
    excess: int = 0

    @property
    def whole(self) -> bool:
        """Whether it does all that was asked for."""
        return not self.kept and not self.excess


@dataclass(frozen=True, slots=True)
class Limits:
    """What serve keeps to: bytes of all layers, free bytes of the file system, seconds without use."""

    max_size: int | None
    min_free: int
    keep_unused: float | None


def plan_clean(layers: Sequence[CachedLayer], selection: Selection, *, now: float) -> Plan:
    """What `cache clean` removes at the time `now` (seconds since the epoch)."""
    if selection.everything or selection.images or selection.layers:
        named = [layer for layer in layers if _is_named(layer, selection)]
        return Plan(
            remove=_oldest_first(layer for layer in named if not layer.used_by),
            kept=tuple(layer for layer in named if layer.used_by),
        )
    unused = _oldest_first(
        layer
        for layer in layers
        if not layer.used_by
        and (selection.older_than is None or now - layer.last_used >= selection.older_than)
    )
    if selection.to_size is None:
        return Plan(unused)
    remove, excess = _shed(unused, sum(layer.bytes for layer in layers) - selection.to_size)
    return Plan(remove, excess=excess)


def plan_limits(layers: Sequence[CachedLayer], limits: Limits, *, free: int, now: float) -> Plan:
    """What serve removes by itself, with `free` bytes free on the file system."""
    unused = _oldest_first(layer for layer in layers if not layer.used_by)
    expired = tuple(
        layer
        for layer in unused
        if limits.keep_unused is not None and now - layer.last_used >= limits.keep_unused
    )
    freed = sum(layer.bytes for layer in expired)
    excess = limits.min_free - free
    if limits.max_size is not None:
        excess = max(excess, sum(layer.bytes for layer in layers) - limits.max_size)
    remove, excess = _shed(unused[len(expired) :], excess - freed)
    return Plan((*expired, *remove), excess=excess)


def _is_named(layer: CachedLayer, selection: Selection) -> bool:
    return (
        selection.everything
        or layer.layer in selection.layers
        or not set(selection.images).isdisjoint(layer.images)
    )


def _oldest_first(layers: Iterable[CachedLayer]) -> tuple[CachedLayer, ...]:
    return tuple(sorted(layers, key=lambda layer: (layer.last_used, layer.layer)))


def _shed(unused: Sequence[CachedLayer], excess: int) -> tuple[tuple[CachedLayer, ...], int]:
    """As many of `unused` as make up for `excess` bytes, and the bytes that they do not make up for."""
    remove: list[CachedLayer] = []
    for layer in unused:
        if excess <= 0:
            break
        remove.append(layer)
        excess -= layer.bytes
    return tuple(remove), max(0, excess)
