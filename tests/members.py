"""The compression members of a hand-made layer, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol


class Compressor(Protocol):
    """Compresses one member."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class Members:
    """The members written so far; `write` begins one where none is open."""

    def __init__(self, begin: Callable[[], Compressor]) -> None:
        self._begin = begin
        self._blob = bytearray()
        self._digest = hashlib.sha256()
        self._deflate: Compressor | None = None
        self._start = 0
        self.inner = 0
        self.uncompressed = 0

    @property
    def offset(self) -> int:
        """Where the open member starts, or the next one will."""
        return len(self._blob) if self._deflate is None else self._start

    def write(self, data: bytes) -> None:
        if self._deflate is None:
            self._start = len(self._blob)
            self._deflate = self._begin()
        self._blob += self._deflate.compress(data)
        self._digest.update(data)
        self.inner += len(data)
        self.uncompressed += len(data)

    def close(self) -> None:
        if self._deflate is not None:
            self._blob += self._deflate.flush()
        self._deflate = None
        self.inner = 0

    def blob(self) -> bytes:
        return bytes(self._blob)

    def diff_id(self) -> str:
        return "sha256:" + self._digest.hexdigest()
