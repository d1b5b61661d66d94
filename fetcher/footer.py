"""The footer of an eStargz or zstd:chunked blob: where its table of contents is. Pure; no I/O.

eStargz (51 bytes), an empty gzip member whose Extra field carries the offset:

    0   10  gzip header: 1f 8b 08 04, then MTIME, XFL, OS
    10   2  XLEN = 26, little endian
    12   4  subfield 'S' 'G', LEN = 22
    16  16  TOC offset, hexadecimal
    32   6  'STARGZ'
    38   5  01 00 00 ff ff, an empty stored block
    43   8  CRC32 and ISIZE, zero

Legacy stargz (47 bytes) has XLEN = 22 and no subfield header. An external TOC
(46 bytes) has XLEN = 21 and says 'STARGZEXTERNALTOC' instead.

zstd:chunked (48 or 72 bytes), a skippable frame (RFC 8878, section 3.1.2) of
little-endian numbers. The TOC is a zstd frame in a skippable frame of its own:

    0    8  skippable frame header: 50 2a 4d 18, then the length, 40 or 64
    8    8  offset of the TOC's zstd frame, which is behind its skippable header
    16   8  its length
    24   8  the TOC's length, uncompressed
    32   8  the kind of TOC, 1
    40   8  'GnUlInUx'      stargz-snapshotter; containers/storage at first
    40  24  offset, length and uncompressed length of tar-split's data
    64   8  'GNUlInUx'      containers/storage; tar-split's data lie between TOC and footer
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from fetcher.errors import FormatError, NotEstargz

FOOTER_SIZE: Final = 51
LEGACY_FOOTER_SIZE: Final = 47
LONGEST_FOOTER: Final = 72
"""So many of a blob's last bytes are enough to find any footer."""
ZSTD_MAGICS: Final = {b"GnUlInUx": 48, b"GNUlInUx": 72}
"""The last 8 bytes of a zstd:chunked footer, and how long it is then."""
SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
SKIPPABLE_HEADER: Final = 8
_EXTERNAL_FOOTER_SIZE: Final = 46

_GZIP_EXTRA = b"\x1f\x8b\x08\x04"
_MAGIC = b"STARGZ"
_EXTERNAL = b"STARGZEXTERNALTOC"
_HEXADECIMAL = b"0123456789abcdefABCDEF"


@dataclass(frozen=True, slots=True)
class Footer:
    """`toc_offset` is the byte at which the TOC's gzip member or skippable frame starts.

    `size` is how many bytes follow it: the footer itself, and anything else that is not the TOC.
    """

    toc_offset: int
    size: int


def parse_footer(tail: bytes, *, blob_size: int) -> Footer:
    """Read the footer at the end of `tail`, the last LONGEST_FOOTER bytes or more of a blob of `blob_size`.

    Raises NotEstargz if there is none, FormatError if it contradicts the blob's size.
    """
    if tail[-8:] in ZSTD_MAGICS:
        return _zstd_footer(tail[-ZSTD_MAGICS[tail[-8:]] :], blob_size)
    for size, xlen, start in ((FOOTER_SIZE, 26, 16), (LEGACY_FOOTER_SIZE, 22, 12)):
        footer = tail[-size:]
        if len(footer) < size or not footer.startswith(_GZIP_EXTRA):
            continue
        if int.from_bytes(footer[10:12], "little") != xlen or footer[start + 16 : start + 22] != _MAGIC:
            continue
        if size == FOOTER_SIZE and footer[12:16] != b"SG\x16\x00":
            continue
        return Footer(_offset(footer[start : start + 16], blob_size - size), size)
    if _EXTERNAL in tail[-_EXTERNAL_FOOTER_SIZE:]:
        raise NotEstargz("the layer keeps its table of contents elsewhere (external TOC): not supported")
    raise NotEstargz(f"no eStargz footer at the end of the layer ({_describe(tail)})")


def _zstd_footer(footer: bytes, blob_size: int) -> Footer:
    """The footer that these bytes, which end with the magic of their length, are."""
    length = ZSTD_MAGICS[footer[-8:]]
    header = SKIPPABLE + (length - SKIPPABLE_HEADER).to_bytes(4, "little")
    if len(footer) < length or not footer.startswith(header):
        raise NotEstargz("the zstd:chunked footer at the end of the layer is no skippable frame")
    offset, size, _, kind = struct.unpack_from("<4Q", footer, SKIPPABLE_HEADER)
    if kind != 1:
        raise NotEstargz(f"the layer has a zstd:chunked table of contents of kind {kind}; only 1 is known")
    if offset < SKIPPABLE_HEADER or not size or offset + size > blob_size - length:
        raise FormatError(
            f"the zstd:chunked footer puts the TOC at bytes {offset} to {offset + size}, outside the layer"
        )
    return Footer(offset - SKIPPABLE_HEADER, blob_size - offset - size)


def _offset(text: bytes, limit: int) -> int:
    if text.strip(_HEXADECIMAL):
        raise FormatError(f"the eStargz footer's TOC offset {text!r} is not hexadecimal")
    offset = int(text, 16)
    if offset >= limit:
        raise FormatError(f"the eStargz footer puts the TOC at byte {offset}, outside the layer")
    return offset


def _describe(tail: bytes) -> str:
    if not tail:
        return "the layer is empty"
    return f"it ends with {tail[-8:].hex()}"
