"""Reading the whole tree in a container once everything is here, against overlayfs in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scripts.benchmark.engines import Lazy, Overlayfs
from scripts.benchmark.host import compiled, drop_page_cache
from scripts.benchmark.registry import PushedImage
from tests.integration.harness import Container, call

_WALKS: Final = (("stat", "warm"), ("stat", "cold"), ("read", "warm"), ("read", "cold"))


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to walk the tree; the seconds of each pass, the engines taking turns."""

    kind: str
    """stat: lstat of every name; read: and every file's content."""
    cache: str
    """warm, or cold: page, dentry and inode caches dropped before each pass."""
    entries: int
    bytes: int
    overlayfs: list[float]
    layergate: list[float]


def compare_reads(
    engine: Lazy, image: PushedImage, plain: PushedImage, work: str, *, passes: int
) -> list[Reading]:
    """Pull both into one containerd, and walk both trees in turn.

    `plain` goes onto overlayfs: it has the same tree, while an eStargz form unpacked has its table
    of contents and landmarks in it too.
    """
    ordinary = Overlayfs(engine.containerd, engine.group)
    call(ordinary.pull_command(plain.reference))
    call(engine.pull_command(image.reference))
    engine.wait_until_complete(image)
    program = compiled("readtree", work)
    with (
        engine.containerd.container(plain.reference) as native,
        engine.containerd.container(image.reference, snapshotter=engine.snapshotter) as ours,
    ):
        return [_compare(program, kind, cache, native, ours, passes) for kind, cache in _WALKS]


def _compare(program: str, kind: str, cache: str, native: Container, ours: Container, passes: int) -> Reading:
    seconds: dict[str, list[float]] = {native.name: [], ours.name: []}
    roots = {one.name: one.root for one in (native, ours)}
    sizes = set()
    for number in range(passes + 1):
        # In turns, so that neither always comes after the other.
        for name in sorted(roots, reverse=bool(number % 2)):
            if cache == "cold":
                drop_page_cache()
            entries, size, took = call([program, kind, roots[name]]).split()
            sizes.add((int(entries), int(size)))
            if number:  # the first pass fills the caches
                seconds[name].append(float(took))
    (same,) = sizes  # both trees have as many entries and bytes, or they are not the same
    return Reading(kind, cache, *same, overlayfs=seconds[native.name], layergate=seconds[ours.name])
