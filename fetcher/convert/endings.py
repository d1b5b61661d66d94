"""How a blob ends: the table of contents and the footer of each format. Pure; no I/O.

eStargz: the TOC is the tar's last entry, in a gzip member of its own with the end of the archive behind it,
then the footer of 51 bytes (`fetcher.footer` has its layout).

zstd:chunked as stargz-snapshotter writes it: the tar ends with the frames; TOC and footer are in skippable
frames, which every decompressor passes over. Integers are little endian:

     0  8  skippable frame: 50 2a 4d 18, u32 length
     8  n  the TOC's JSON in a zstd frame; the offset of this is what annotation and footer give
     .  8  skippable frame: 50 2a 4d 18, u32 length = 40
     .  8  TOC offset
     .  8  TOC compressed size
     .  8  TOC size
     .  8  TOC type = 1
     .  8  'GnUlInUx'
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final, NamedTuple

from fetcher.convert.header import new_header, padding
from fetcher.convert.options import LayerFormat
from fetcher.toc import TOC_NAME

TOC_DIGEST: Final = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE: Final = "io.containers.estargz.uncompressed-size"
ZSTD_CHECKSUM: Final = "io.containers.zstd-chunked.manifest-checksum"
ZSTD_POSITION: Final = "io.containers.zstd-chunked.manifest-position"
END_OF_ARCHIVE: Final = bytes(1024)

_SKIPPABLE: Final = b"\x50\x2a\x4d\x18"
_TYPE: Final = 1
_ZSTD_FOOTER: Final = struct.Struct("<QQQQ8s")


class Ending(NamedTuple):
    """What follows a blob's members, and the annotations that only this format has."""

    data: bytes
    annotations: dict[str, str]


def archive_end(form: LayerFormat) -> bytes:
    """What of the end of the tar stands in front of the table of contents."""
    return END_OF_ARCHIVE if form is LayerFormat.ZSTD_CHUNKED else b""


def toc_content(form: LayerFormat, json: bytes) -> bytes:
    """What is to be compressed for the table of contents; in eStargz it is a part of the tar."""
    if form is LayerFormat.ZSTD_CHUNKED:
        return json
    header = new_header(TOC_NAME.encode(), len(json), mode=0o444)
    return header + json + bytes(padding(len(json))) + END_OF_ARCHIVE


def ending(form: LayerFormat, json: bytes, compressed: bytes, offset: int) -> Ending:
    """What is written at `offset`, behind the members; `compressed` is `toc_content` of the TOC's JSON."""
    if form is LayerFormat.ESTARGZ:
        return Ending(compressed + _estargz_footer(offset), {})
    start = offset + len(_SKIPPABLE) + 4
    footer = _ZSTD_FOOTER.pack(start, len(compressed), len(json), _TYPE, b"GnUlInUx")
    annotations = {
        ZSTD_CHECKSUM: "sha256:" + hashlib.sha256(compressed).hexdigest(),
        ZSTD_POSITION: f"{start}:{len(compressed)}:{len(json)}:{_TYPE}",
    }
    return Ending(_skippable(compressed) + _skippable(footer), annotations)


def _estargz_footer(toc_offset: int) -> bytes:
    extra = b"SG\x16\x00%016xSTARGZ" % toc_offset
    header = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + len(extra).to_bytes(2, "little")
    return header + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def _skippable(content: bytes) -> bytes:
    return _SKIPPABLE + len(content).to_bytes(4, "little") + content
