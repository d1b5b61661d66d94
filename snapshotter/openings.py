"""Blobs that are being opened, and blobs whose layers are being removed: the one excludes the other.

Belongs to serve's event loop. Whoever opens a layer that is here already relies on its staying; whoever
removes layers passes over those that somebody relies on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio


class Openings:
    """Counts openings by blob digest."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._removing: frozenset[str] = frozenset()
        self._removed = anyio.Event()

    @asynccontextmanager
    async def opening(self, digest: str) -> AsyncIterator[None]:
        """Inside the block no layer of the blob is removed; waits for a removal that has begun."""
        while digest in self._removing:
            await self._removed.wait()
        self._open[digest] += 1
        try:
            yield
        finally:
            self._open[digest] -= 1
            if not self._open[digest]:
                del self._open[digest]

    def is_opening(self, digest: str) -> bool:
        """Whether anybody opens a layer of the blob now."""
        return digest in self._open

    @contextmanager
    def removing(self, digests: Collection[str]) -> Iterator[frozenset[str]]:
        """Those of `digests` that nobody opens; inside the block nobody begins to. One block at a time."""
        assert not self._removing, "layers are removed by one task at a time"
        self._removing = frozenset(digests) - self._open.keys()
        try:
            yield self._removing
        finally:
            self._removing = frozenset()
            self._removed.set()
            self._removed = anyio.Event()
