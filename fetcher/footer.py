"""The eStargz footer: where a blob's table of contents starts. Pure; no I/O.

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fetcher.errors import FormatError, NotEstargz

FOOTER_SIZE: Final = 51
LEGACY_FOOTER_SIZE: Final = 47
_EXTERNAL_FOOTER_SIZE: Final = 46

_GZIP_EXTRA = b"\x1f\x8b\x08\x04"
_MAGIC = b"STARGZ"
_EXTERNAL = b"STARGZEXTERNALTOC"
_HEXADECIMAL = b"0123456789abcdefABCDEF"


@dataclass(frozen=True, slots=True)
class Footer:
    """`toc_offset` is the byte at which the TOC's gzip member starts; `size` is the footer's own length."""

    toc_offset: int
    size: int


def parse_footer(tail: bytes, *, blob_size: int) -> Footer:
    """Read the footer at the end of `tail`, the last bytes of a blob of `blob_size` bytes.

    Raises NotEstargz if there is none, FormatError if it contradicts the blob's size.
    """
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
