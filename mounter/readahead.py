"""How many bytes to ask for behind a missed file. Pure.

Usually as many as come in the time that a request takes anyway. Who reads a layer in its order, in which its
directories are listed, too (tar, cp, grep), misses the file behind these next; request after request would
leave the link idle for half of the time, and the reader slower than the stream that stands back for it. So
twice as many are asked for each time that a miss is where what was asked for before has ended, and half as
many each time that it is not.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from mounter.link import LinkEstimate

LEAST: Final = 64 << 10
"""Bytes behind a missed file that are asked for at least: they cost next to nothing on any link."""
_LONGEST_SECONDS: Final = 0.25
"""What one request brings takes so long at most: somebody else may wait for a part of it."""
_GAP: Final = 64 << 10
"""Bytes between the end of what was asked for and the next miss: files that were here, say."""
_ENDS: Final = 64
"""There may be several readers, and the files of a directory may lie on both sides of another one."""


class ReadAhead:
    """Of one layer."""

    __slots__ = ("_ends", "_size")

    def __init__(self) -> None:
        self._ends: deque[int] = deque(maxlen=_ENDS)
        """Where in the blob what was asked for has ended, and nobody has gone on yet."""
        self._size = 0

    def size(self, start: int, link: LinkEstimate, most: int) -> int:
        """Bytes to ask for behind a file that was missed at byte `start` of the blob; at most `most`."""
        usual = min(most, max(LEAST, int(link.bandwidth * link.round_trip)))
        longest = min(most, max(usual, int(link.bandwidth * _LONGEST_SECONDS)))
        end = next((end for end in self._ends if 0 <= start - end <= _GAP), None)
        if end is None:
            self._size //= 2
        else:
            self._ends.remove(end)
            self._size *= 2
        self._size = min(longest, max(usual, self._size))
        return self._size

    def asked(self, end: int) -> None:
        """What is up to byte `end` of the blob was asked for."""
        self._ends.append(end)
