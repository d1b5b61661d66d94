"""serve's own cache keeping: limits kept, old layers dropped, streaming held back before the disk is full.

Every minute, and after each Cleanup, the layers in use are noted down and those that the limits do not
allow are removed. Every second the free space is looked at; what is short of it has unused layers removed
at once, and where that is not enough, streams wait. On-demand reads are never held back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import anyio
from anyio import to_thread

from fetcher.logs import get_logger
from snapshotter.cache.limits import Space, free_space, limits, min_free, must_wait
from snapshotter.cache.plan import Limits, Plan
from snapshotter.cache.quantities import size_text
from snapshotter.config import CacheConfig
from snapshotter.errors import MetadataError

log = get_logger("layergate.cache")

_KEEP_SECONDS: Final = 60.0
_WATCH_SECONDS: Final = 1.0
_SHORT_SECONDS: Final = 10.0
"""While streams wait for space, unused layers are looked for this often."""


class Keeping(Protocol):
    """What the keeper asks of the cache."""

    async def keep(self, limits: Limits, *, free: int) -> Plan:
        """Note which layers are in use, and remove what the limits do not allow. Raises OSError."""
        ...


class Streams(Protocol):
    """What the keeper asks of the streams."""

    def keep_free(self, count: int) -> None:
        """Have streams wait by themselves while less than `count` bytes are free."""
        ...

    def pause(self) -> None:
        """Stream nothing until `resume`."""
        ...

    def resume(self) -> None:
        """Go on streaming."""
        ...


class CacheKeeper:
    """Runs in serve's event loop; `root` is the directory whose file system counts."""

    def __init__(
        self,
        root: str,
        config: CacheConfig,
        *,
        cache: Keeping,
        streams: Streams,
        measure: Callable[[str], Space] = free_space,
    ) -> None:
        self._root = root
        self._measure = measure
        self._config = config
        self._cache = cache
        self._streams = streams
        self._waiting = False
        self._over = False
        self._woken = anyio.Event()
        self._due = self._retry = 0.0

    def configure(self, config: CacheConfig) -> None:
        """Take a new configuration, at once."""
        self._config = config
        self.wake()

    def wake(self) -> None:
        """Layers may have fallen out of use: look now."""
        self._woken.set()

    async def run(self) -> None:
        """Keep the cache until cancelled."""
        while True:
            try:
                await self._look()
            except (OSError, MetadataError) as error:
                log.error("cache_not_kept", error=str(error))
            with anyio.move_on_after(_WATCH_SECONDS):
                await self._woken.wait()

    async def _look(self) -> None:
        space = await to_thread.run_sync(self._measure, self._root)
        least = min_free(self._config, space)
        self._streams.keep_free(least)
        now = anyio.current_time()
        short = must_wait(space.free, least, waiting=self._waiting)
        if self._woken.is_set() or now >= self._due or (short and (not self._waiting or now >= self._retry)):
            self._woken = anyio.Event()
            self._due, self._retry = now + _KEEP_SECONDS, now + _SHORT_SECONDS
            await self._keep(space)
            space = await to_thread.run_sync(self._measure, self._root)
        self._hold_back(space, least)

    async def _keep(self, space: Space) -> None:
        plan = await self._cache.keep(limits(self._config, space), free=space.free)
        over = plan.excess > 0
        if over and not self._over:
            log.warning(
                "cache_over_limits", excess=size_text(plan.excess), reason="all other layers are in use"
            )
        self._over = over

    def _hold_back(self, space: Space, least: int) -> None:
        waiting = must_wait(space.free, least, waiting=self._waiting)
        if waiting and not self._waiting:
            log.warning("streaming_paused", free=size_text(space.free), min_free=size_text(least))
            self._streams.pause()
        elif self._waiting and not waiting:
            log.info("streaming_resumed", free=size_text(space.free))
            self._streams.resume()
        self._waiting = waiting
