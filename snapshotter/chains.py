"""A chain of layers as what a mount stands on: native directories above, one lazy lower for the rest.

    chain (uppermost first)     complete   incomplete   complete   ordinary
    lowerdirs                   native     `------ one lazy lower -------'

Complete layers are native directories. From the uppermost incomplete layer down to the bottom of the chain,
everything stands in one lazy lower, complete layers too, as META: a directory inside PLAIN cannot be a
layer of a mount that has PLAIN as its data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from fetcher.store import LayerStore
from mounter.lowers import Directory, Meta, Part
from snapshotter.lowers import LazyLink, Link

L = TypeVar("L", bound=Link)


def distinct(chain: Sequence[L]) -> list[L]:
    """The chain without the second coming of a layer, an empty one as a rule.

    overlayfs takes no directory twice, and all that the layer has is there already, higher up.
    """
    return list(dict.fromkeys(chain))


def split_chain(store: LayerStore, chain: Sequence[Link]) -> tuple[list[str], list[Link]]:
    """Native directories down to the uppermost incomplete layer, and the distinct links from there on."""
    links = distinct(chain)
    incomplete = [
        number
        for number, link in enumerate(links)
        if isinstance(link, LazyLink) and not store.is_complete(link.layer)
    ]
    first = incomplete[0] if incomplete else len(links)
    native = [store.fs(link.layer) if isinstance(link, LazyLink) else link.path for link in links[:first]]
    return native, links[first:]


def lower_parts(links: Sequence[Link]) -> list[Part]:
    """Links as parts of a lazy lower."""
    return [Meta(link.layer) if isinstance(link, LazyLink) else Directory(link.path) for link in links]


def tree_paths(store: LayerStore, links: Sequence[Link], trees: str) -> list[str]:
    """Links as directories where the mounter shows whole trees, below the directory `trees`."""
    return [
        link.path
        if not isinstance(link, LazyLink)
        else store.fs(link.layer)
        if store.is_complete(link.layer)
        else os.path.join(trees, link.layer, "fs")
        for link in links
    ]
