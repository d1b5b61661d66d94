"""How far a layer is: counters in a mapped file, so that any process can read them at no cost.

`layers/<layer>/progress` holds one u64 a field of `Field`. Each field has one
writer: the process that holds the layer's streaming lock, or the mounter for
the ON_DEMAND ones. Readers need no lock.
"""

from __future__ import annotations

import enum
from typing import Final

from fetcher.words import shared_words

FIELDS: Final = 16


class Field(enum.IntEnum):
    """Bytes are compressed bytes of the blob; files are regular files with content."""

    BYTES_TOTAL = 0
    BYTES_DONE = 1
    FILES_TOTAL = 2
    FILES_DONE = 3
    POSITION = 4
    """Where in the blob the running stream is."""
    STOP = 5
    """Where the running stream's span ends; 0 when none runs."""
    FETCHED_TOC = 6
    FETCHED_PREFETCH = 7
    FETCHED_BACKGROUND = 8
    FETCHED_ON_DEMAND = 9
    RATE = 10
    """Bytes a second of the running stream, smoothed."""
    REQUESTS = 11
    """HTTP requests made to stream the layer."""
    PREFETCH_END = 12
    """Where what is prefetched ends, bytes; 0 without a prefetch range."""
    LINK_RATE = 13
    """Bytes a second of a prefetch that was large enough to tell, round trips and all; 0 if none was."""


class Progress:
    """The counters of one layer; `path` is created if it does not exist."""

    def __init__(self, path: str) -> None:
        self._values = shared_words(FIELDS, path)

    def __getitem__(self, field: Field) -> int:
        return self._values[field]

    def __setitem__(self, field: Field, value: int) -> None:
        self._values[field] = value

    def add(self, field: Field, value: int) -> None:
        """Add to a field of which this process is the writer."""
        self[field] += value

    def close(self) -> None:
        """Unmap; the counters stay in the file."""
        self._values.release()
