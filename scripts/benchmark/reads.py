"""Reading a whole tree in a container: on a lazy lower, after the swap, on the peer; against overlayfs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from scripts.benchmark.engines import Engine, Lazy, NotNative, Overlayfs
from scripts.benchmark.host import compiled, drop_page_cache
from scripts.benchmark.registry import PushedImage
from tests.integration.harness import call

OVERLAYFS: Final = "overlayfs"
LAZY: Final = "lazy lower"
SWAPPED: Final = "swapped"
PEER: Final = "peer"

_WALKS: Final = (("stat", "warm"), ("stat", "cold"), ("read", "warm"), ("read", "cold"))


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to walk the tree; the seconds of each pass by what the container stands on, taking turns."""

    image: str
    kind: str
    """stat: lstat of every name; read: and every file's content."""
    cache: str
    """warm, or cold: page, dentry and inode caches dropped before each pass."""
    entries: int
    bytes: int
    seconds: dict[str, list[float]]


def compare_reads(
    name: str,
    engine: Lazy,
    image: PushedImage,
    plain: PushedImage,
    work: str,
    *,
    passes: int,
    peer: Engine | None = None,
) -> list[Reading]:
    """Pull both into one containerd, and walk the tree of three containers in turn, and of one of the peer's.

    One was started before everything was here and stands on a lazy lower still, one after the swap. `plain`
    goes onto overlayfs: it has the same tree, while an eStargz form unpacked has its table of contents and
    landmarks in it too. Raises NotNative where a container stands on something else.
    """
    containerd = engine.containerd
    call(Overlayfs(containerd, engine.group).pull_command(plain.reference), timeout=900)
    call(engine.pull_command(image.reference))
    if peer is not None:
        call(peer.pull_command(image.reference))
    program = compiled("readtree", work)
    with containerd.container(image.reference, snapshotter=engine.snapshotter) as early:
        engine.wait_until_on_disk(image)
        with (
            containerd.container(plain.reference) as native,
            containerd.container(image.reference, snapshotter=engine.snapshotter) as late,
            contextlib.ExitStack() as stack,
        ):
            if engine.is_native(early) or not engine.is_native(late):
                raise NotNative("the containers do not stand on what they were to be compared on")
            roots = {OVERLAYFS: native.root, LAZY: early.root, SWAPPED: late.root}
            if peer is not None:
                container = peer.containerd.container(image.reference, snapshotter=peer.snapshotter)
                roots[PEER] = stack.enter_context(container).root
                peer.wait_until_complete(image)
            return [_compare(name, program, kind, cache, roots, passes) for kind, cache in _WALKS]


def _compare(image: str, program: str, kind: str, cache: str, roots: dict[str, str], passes: int) -> Reading:
    seconds: dict[str, list[float]] = {name: [] for name in roots}
    sizes = set()
    order = list(roots)
    for number in range(passes + 1):
        for name in order:
            if cache == "cold":
                drop_page_cache()
            entries, size, took = call([program, kind, roots[name]]).split()
            sizes.add((int(entries), int(size)))
            if number:  # the first pass fills the caches
                seconds[name].append(float(took))
        order.append(order.pop(0))  # in turns, so that none always comes after the same other
    (same,) = sizes  # all trees have as many entries and bytes, or they are not the same
    return Reading(image, kind, cache, *same, seconds=seconds)
