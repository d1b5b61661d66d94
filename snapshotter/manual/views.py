"""What is mounted for a chain of layers: now, and when all of them are complete. Mounts nothing itself.

one layer alone, read-only      its tree as it is, whiteouts and all: a bind mount of the plain directory;
                                while it is not complete, of the tree that the mounter shows
anything else                   an overlay of the plain directories; while they are not complete, of (or a
                                bind mount of) the lazy lower, with complete layers natively above it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fetcher.nodes import Kind
from fetcher.store import LayerStore
from fetcher.tree import LayerTree
from mounter.probe import Mode
from mounter.swap import Bind, Overlay, View
from snapshotter.lowers import LazyLink
from snapshotter.manual.upper import work_path


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants to see; `chain` has distinct layers, the uppermost first.

    `above` is a directory that has to lie above the uppermost layer (`attributes.make_above`), `below` one
    that has to lie below the lowest (`make_below`).
    """

    chain: tuple[LazyLink, ...]
    alone: bool
    upper: str | None
    above: str | None = None
    below: str | None = None

    @property
    def raw(self) -> bool:
        """Whether the one layer's own tree is shown; an overlay, so a writable one too, hides whiteouts."""
        return self.alone and self.upper is None

    @property
    def highest(self) -> list[str]:
        """What comes before the layers' own directories."""
        return [] if self.above is None else [self.above]

    @property
    def lowest(self) -> list[str]:
        """What comes after them."""
        return [] if self.below is None else [self.below]


def make_below(directory: str, tree: LayerTree | None) -> None:
    """Make what lies below the lowest layer of a merged tree; `tree` is that layer's. Raises OSError.

    That is an empty directory, as overlayfs wants two at least, and in it each directory in which the layer
    has a whiteout: only where directories are merged does overlayfs leave whiteouts out of a listing.
    """
    os.mkdir(directory, 0o755)
    for path, node in tree.nodes.items() if tree is not None else ():
        if node.kind is Kind.WHITEOUT:
            os.makedirs(os.path.join(directory, os.path.dirname(path)), exist_ok=True)


def native_view(store: LayerStore, wanted: Wanted) -> View:
    """The view of complete layers."""
    lower = [store.fs(link.layer) for link in wanted.chain]
    return (
        Bind(lower[0])
        if wanted.raw
        else merged(wanted, [*wanted.highest, *lower, *wanted.lowest], turn="native")
    )


def tree_view(store: LayerStore, wanted: Wanted, mode: Mode) -> View:
    """The view of one layer alone, while it is not complete."""
    return Bind(os.path.join(trees_path(store.root, mode), wanted.chain[0].layer, "fs"))


def trees_path(root: str, mode: Mode) -> str:
    """Where a mounter of that mode shows each layer as a complete tree, at <layer>/fs."""
    gate = os.path.join(root, "gate")
    return os.path.join(gate, "trees") if mode is Mode.GATE else gate


def merged(wanted: Wanted, lower: Sequence[str], *, turn: str, lazy: bool = False) -> View:
    """The view of `lower`, the uppermost first, of which the last one may be `lazy`.

    `turn` names its work directory. metacopy is off whatever the module's default is: an upper
    directory must hold whole files, to be mounted on other lower directories later. With an index it would
    refuse them.
    """
    if wanted.upper is not None:
        work = os.path.join(work_path(wanted.upper), turn)
        options = {"upperdir": wanted.upper, "workdir": work, "index": "off", "metacopy": "off", "xino": "on"}
        return Overlay(lower, options)
    if len(lower) == 1:
        return Bind(lower[0])
    return Overlay(lower, {"xino": "on", "metacopy": "off"} if lazy else {"metacopy": "off"})
