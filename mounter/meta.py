"""META: a layer's tree as a real one, whose regular files are redirects to data kept elsewhere.

Every regular file is sparse, has its true size and two xattrs by which overlayfs finds its bytes at
the first open: `trusted.overlay.metacopy` (empty) and `trusted.overlay.redirect`
(`/<layer>/fs/<path>`), looked for in the data-only layers of `mounter.lowers`. Empty files are
plain: there are no bytes to look for.

`ensure_meta` makes a file system that is mounted nowhere yet and attaches it when it is whole. So a META
that can be seen is complete, and a process that dies half-way leaves nothing: the file of an EROFS image has
no name. Blocking; 3 us a file, and 20 us where it has to be a tmpfs: call it from a process that may be busy.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from fetcher.tree import LayerTree
from mounter.erofs import FILE_LIMIT, build_image
from mounter.errors import mount_failures
from mounter.lock import locked
from mounter.meta_tmpfs import detached_meta_tmpfs
from mounter.mountinfo import is_mount_point
from mounter.syscalls import attach, detach, detached_erofs

_SOURCE: Final = "layergate-meta"


class MetaForm(enum.Enum):
    """What META is a file system of; `mounter.probe` finds out which this host can have."""

    EROFS = "erofs"
    """An image in an unnamed file below `meta/`: memory that the kernel can reclaim, 0.23 KB a file."""
    TMPFS = "tmpfs"
    """Kernel memory, 1.35 KB a file."""


def meta_path(root: str, layer: str) -> str:
    """Where the META tree of `layer` is once `ensure_meta` made it: a lower directory."""
    return os.path.join(root, "meta", layer, "fs")


def has_meta(root: str, layer: str) -> bool:
    """Whether META of `layer` stands."""
    return is_mount_point(os.path.join(root, "meta", layer))


def surely_shown(tree: LayerTree) -> bool:
    """Whether META of any form can show the layer whole; if not, making it tells."""
    return not any(node.xattrs or node.size > FILE_LIMIT for node in tree.nodes.values())


def ensure_meta(root: str, layer: str, tree: LayerTree, form: MetaForm, *, processes: int = 1) -> str:
    """Make META of `layer` if it is not there yet, and give its path. Safe against concurrent callers.

    On a full disk it is a tmpfs whatever `form` says: a container can be started there all the same.
    A large tmpfs is made by so many `processes`, all but one of which are forked off this one: more than one
    is for a process with one thread and no event loop.

    Raises MountFailed, and UnsupportedAttribute if META of this form cannot show the layer whole.
    """
    target = os.path.join(root, "meta", layer)
    with mount_failures(f"cannot make META of {layer}", target):
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        with locked(f"{target}.lock"):
            if not is_mount_point(target):
                os.makedirs(target, mode=0o700, exist_ok=True)
                with ExitStack() as stack:
                    attach(_made(stack, target, layer, tree, form, processes), target)
    return meta_path(root, layer)


def _made(stack: ExitStack, target: str, layer: str, tree: LayerTree, form: MetaForm, processes: int) -> int:
    """The descriptor of META as a file system that is mounted nowhere and lasts as long as `stack`."""
    if form is MetaForm.EROFS:
        try:
            return stack.enter_context(_detached_image(os.path.dirname(target), build_image(tree, layer)))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
    return stack.enter_context(detached_meta_tmpfs(tree, layer=layer, source=_SOURCE, processes=processes))


@contextmanager
def _detached_image(directory: str, image: bytearray) -> Iterator[int]:
    """An EROFS image as a file system that is mounted nowhere, kept in an unnamed file in `directory`."""
    file = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(image)
        with detached_erofs(f"/proc/self/fd/{file}") as fd:
            yield fd
    finally:
        os.close(file)


def release_meta(root: str, layer: str) -> None:
    """Take META of `layer` away; does nothing if it is not there.

    Lazy lowers that stand on it go on working, and its memory is freed with the last of them.
    Raises MountFailed.
    """
    target = os.path.join(root, "meta", layer)
    if not os.path.isdir(target):
        return
    lock = f"{target}.lock"
    with mount_failures(f"cannot release META of {layer}", target), locked(lock):
        if is_mount_point(target):
            detach(target)
        with suppress(FileNotFoundError):
            os.rmdir(target)
        os.unlink(lock)


def metas(root: str) -> list[str]:
    """The layers that have a META now, in no order."""
    directory = os.path.join(root, "meta")
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [name for name in names if has_meta(root, name)]
