"""Room on the disk: how much is kept free, and when streaming waits for more. Pure but for `free_space`.

    0 ........ min_free ........ 5/4 min_free ........ size
    streaming waits    |  it goes on waiting  |  it goes on
    unused layers go until 5/4 min_free are free

The two bounds differ so that neither flickers. Without `min_free` in the configuration it is 1 GB, or a
twentieth of the file system where that is less.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from snapshotter.cache.plan import Limits
from snapshotter.config import CacheConfig

_DEFAULT_MIN_FREE: Final = 1_000_000_000
_DEFAULT_SHARE: Final = 20


@dataclass(frozen=True, slots=True)
class Space:
    """A file system's bytes: all, and those that are free for us."""

    size: int
    free: int


def free_space(path: str) -> Space:
    """What statvfs says of the file system at `path`. Raises OSError."""
    found = os.statvfs(path)
    return Space(size=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def min_free(config: CacheConfig, space: Space) -> int:
    """Bytes to be kept free on such a file system."""
    if config.min_free_share is not None:
        return int(space.size * config.min_free_share)
    if config.min_free_bytes is not None:
        return config.min_free_bytes
    return min(_DEFAULT_MIN_FREE, space.size // _DEFAULT_SHARE)


def limits(config: CacheConfig, space: Space) -> Limits:
    """What the cache is to keep to."""
    return Limits(
        max_size=config.max_size_bytes,
        min_free=enough(min_free(config, space)),
        keep_unused=config.keep_unused_seconds,
    )


def enough(least: int) -> int:
    """How much has to be free before streaming goes on that had stopped below `least`."""
    return least + least // 4


def must_wait(free: int, least: int, *, waiting: bool) -> bool:
    """Whether streaming has to wait for room, given whether it waits now."""
    return free < (enough(least) if waiting else least)
