"""Walking the frames of a zstd stream (RFC 8878, section 3.1), to tell whether all of it is there.

The streaming decompressor takes the end of its input as the end of the data, wherever that is. So the
frames are gone through by their headers first, which reads some bytes of each block.
"""

from __future__ import annotations

import os
from typing import Final

from fetcher.errors import FormatError

_MAGIC: Final = 0xFD2FB528
_SKIPPABLE: Final = 0x184D2A50
_RLE: Final = 1
_RESERVED: Final = 3
_DICTIONARY_SIZES: Final = (0, 1, 2, 4)
_CONTENT_SIZES: Final = (0, 2, 4, 8)


def check_frames(fd: int) -> None:
    """Raise FormatError unless the file is a row of whole frames, skippable ones among them."""
    size = os.fstat(fd).st_size
    offset = 0
    while offset < size:
        magic = _number(fd, offset, 4)
        if magic & ~0xF == _SKIPPABLE:
            end = offset + 8 + _number(fd, offset + 4, 4)
        elif magic == _MAGIC:
            end = _end_of_frame(fd, offset)
        else:
            raise FormatError(f"the zstd data are damaged: no frame begins at byte {offset}")
        if end > size:
            raise FormatError(f"the zstd data break off in the frame that begins at byte {offset}")
        offset = end


def _end_of_frame(fd: int, start: int) -> int:
    """Where the frame at `start` ends; it may be behind the end of the file."""
    descriptor = _number(fd, start + 4, 1)
    is_single_segment = descriptor >> 5 & 1
    content_size = _CONTENT_SIZES[descriptor >> 6] or is_single_segment
    offset = start + 5 + (not is_single_segment) + _DICTIONARY_SIZES[descriptor & 3] + content_size
    is_last = 0
    while not is_last:
        block = _number(fd, offset, 3)
        is_last, kind = block & 1, block >> 1 & 3
        if kind == _RESERVED:
            raise FormatError(f"the zstd data are damaged: no block begins at byte {offset}")
        offset += 3 + (1 if kind == _RLE else block >> 3)
    has_checksum = descriptor >> 2 & 1
    return offset + 4 * has_checksum


def _number(fd: int, offset: int, size: int) -> int:
    data = os.pread(fd, size, offset)
    if len(data) < size:
        raise FormatError(f"the zstd data break off at byte {offset}")
    return int.from_bytes(data, "little")
