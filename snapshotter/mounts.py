"""Composing what containerd is told to mount. Pure: nothing is mounted here.

The forms are those of containerd's own overlay snapshotter:

    active, no parent    bind of the snapshot's directory, rw
    view, no parent      the same, ro
    view, one lower      bind of the lower directory, ro
    view, more lowers    overlay of the lower directories alone
    active               overlay with workdir and upperdir

`metacopy` is never an option: a chmod would leave a stub in upperdir that
points into a lower layer, and the snapshot could not be mounted on anything
else any more. `ro` is never the last option of an active snapshot's mount:
containerd 2.4 takes that as staged.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

from snapshotter.errors import FailedPrecondition
from snapshotter.lowers import Lowerdirs

MAX_LOWERS = 500
"""OVL_MAX_STACK: more lower layers than this no kernel takes."""


@dataclass(frozen=True, slots=True)
class Mount:
    """containerd.types.Mount; the target is the caller's choice, so it is left out."""

    type: str
    source: str
    options: tuple[str, ...]


def compose(*, upper: str, work: str | None, lowers: Lowerdirs, index_off: bool) -> tuple[Mount, ...]:
    """Give the mounts of one snapshot; `work` is None for a view.

    `index_off` adds `index=off`, for kernels that know it: with an index, an
    upperdir refuses other lower directories than its first. Raises
    FailedPrecondition if overlayfs cannot take that many lower directories.
    """
    if not lowers.paths:
        return (Mount("bind", upper, ("ro" if work is None else "rw", "rbind")),)
    if work is None and len(lowers.paths) == 1:
        return (Mount("bind", lowers.paths[0], ("ro", "rbind")),)
    options = [] if work is None else [f"workdir={work}", f"upperdir={upper}"]
    options.append("lowerdir=" + ":".join(lowers.paths))
    if index_off:
        options.append("index=off")
    if lowers.lazy:
        # Otherwise files and directories differ in st_dev, which breaks find -xdev and its like.
        options.append("xino=on")
    _check(options, lowers.paths)
    return (Mount("overlay", "overlay", tuple(options)),)


def _check(options: list[str], paths: tuple[str, ...]) -> None:
    """Refuse what mount(2) would, with a reason that can be acted on."""
    for path in paths:
        if not path or any(character in path for character in ":,\\"):
            raise FailedPrecondition(
                f"overlayfs cannot take {path!r} as a lower directory: choose a root without : , \\"
            )
    if len(paths) > MAX_LOWERS:
        raise FailedPrecondition(f"{len(paths)} lower directories: overlayfs takes at most {MAX_LOWERS}")
    # The option string must fit into a page. containerd shortens a longer one: it changes into the
    # directory that the lower ones have in common and names them from there.
    length = len(",".join(options).encode()) + 1
    if length > mmap.PAGESIZE and len(paths) > 1:
        length -= len(paths) * (len(os.path.commonpath(paths).encode()) + 1)
    if length > mmap.PAGESIZE:
        raise FailedPrecondition(
            f"mount options of {length} bytes for {len(paths)} lower directories: "
            f"the kernel takes at most {mmap.PAGESIZE}; choose a shorter root"
        )
