"""Removing layers: set aside by one rename each, while nobody can begin to use them, and deleted afterwards.

    ROOT/layers/.dead-<layer>-<random>      set aside; a crash leaves it for the next clean-up

A layer that is being set aside is locked in two ways: its name among the mounter's uses (whoever is
going to mount it waits, and looks for it again afterwards) and its streaming lock. The caller sees to it
that no snapshot names it, nor is about to. Blocking.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from fetcher.store import LayerStore
from mounter.uses import unused
from snapshotter.cache.inventory import mount_users
from snapshotter.cache.values import User, UserKind

_AT_ONCE: Final = 100
"""Layers locked at a time; each takes two file descriptors."""


@dataclass(slots=True)
class SetAside:
    """What became of each layer: where it lies now, or who uses it."""

    dead: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[User]] = field(default_factory=dict)


def set_aside(store: LayerStore, layers: Sequence[str]) -> SetAside:
    """Take these layers out of the store unless a mount or a process needs them. Raises OSError.

    Layers that are gone already are left out of the answer.
    """
    result = SetAside()
    for start in range(0, len(layers), _AT_ONCE):
        with ExitStack() as locks:
            free = []
            for layer in layers[start : start + _AT_ONCE]:
                if not locks.enter_context(unused(store.root, layer)):
                    result.kept[layer] = [User(UserKind.PROCESS, "mounts it")]
                elif not locks.enter_context(not_worked_on(store, layer)):
                    result.kept[layer] = [User(UserKind.PROCESS, "streams or repairs it")]
                else:
                    free.append(layer)
            users = mount_users(store.root, free)
            for layer in free:
                if layer in users:
                    result.kept[layer] = users[layer]
                else:
                    with suppress(FileNotFoundError):
                        result.dead[layer] = _rename(store, layer)
    return result


def delete_layer(store: LayerStore, layer: str, dead: str) -> str | None:
    """Delete a layer that was set aside, with its links in LATE; why that failed, None if it did not.

    Links in LATE are the mounter's to remove otherwise; of a layer that nobody has, none is needed.
    """
    shutil.rmtree(os.path.join(store.root, "late", layer), ignore_errors=True)
    return delete_tree(dead)


def delete_tree(path: str) -> str | None:
    """Delete a directory with all that is in it; the first refusal of the system, None if there was none."""
    refusals: list[str] = []

    def refused(_function: Callable[..., object], _path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            refusals.append(str(error))

    # onerror gets exc_info; its successor onexc is of Python 3.12.
    shutil.rmtree(path, onerror=lambda function, where, info: refused(function, where, info[1]))
    return refusals[0] if refusals else None


@contextmanager
def not_worked_on(store: LayerStore, layer: str) -> Iterator[bool]:
    """Whether nobody holds the layer's streaming lock; if so, nobody gets it inside the block."""
    try:
        fd = os.open(
            os.path.join(store.directory(layer), "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except FileNotFoundError:  # the layer is gone
        yield True
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _rename(store: LayerStore, layer: str) -> str:
    dead = os.path.join(store.layers_directory, f".dead-{layer}-{secrets.token_hex(4)}")
    os.rename(store.directory(layer), dead)
    return dead
