"""Which layers are to go. Pure: what is here in, decisions out; nothing is removed by it.

Two rules hold for every decision: a layer that somebody uses stays, and layers
go whole, the least recently used first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from snapshotter.cache.values import CachedLayer, Selection

_SHORTEST_PREFIX: Final = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes, in this order.

    `kept` was named but is in use; no layer has one of the names `unknown`; `excess` bytes stay that
    should have gone.
    """

    remove: tuple[CachedLayer, ...]
    kept: tuple[CachedLayer, ...] = ()
    unknown: tuple[str, ...] = ()
    excess: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What serve keeps to: bytes of all layers, free bytes of the file system, seconds without use."""

    max_size: int | None
    min_free: int
    keep_unused: float | None


def plan_clean(layers: Sequence[CachedLayer], selection: Selection, *, now: float) -> Plan:
    """What `cache clean` removes at the time `now` (seconds since the epoch)."""
    if selection.everything or selection.images or selection.layers:
        by_name = [[layer for layer in layers if is_called(layer, name)] for name in selection.layers]
        by_image = [[layer for layer in layers if name in layer.images] for name in selection.images]
        found = {layer.layer for some in (*by_name, *by_image) for layer in some}
        named = [layer for layer in layers if selection.everything or layer.layer in found]
        return Plan(
            remove=_oldest_first(layer for layer in named if not layer.used_by),
            kept=tuple(layer for layer in named if layer.used_by),
            unknown=tuple(
                name
                for name, some in zip(
                    [*selection.layers, *selection.images], [*by_name, *by_image], strict=True
                )
                if not some
            ),
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


def is_called(layer: CachedLayer, name: str) -> bool:
    """Whether `name` is the layer's digest, a beginning of at least 6 digits of it, or the layer key."""
    digits = name.removeprefix("sha256:")
    return name == layer.layer or (
        len(digits) >= _SHORTEST_PREFIX and layer.digest.removeprefix("sha256:").startswith(digits)
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
