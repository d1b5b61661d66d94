"""Saying what a blob is that has no table of contents, by its first and last bytes. Pure; no I/O."""

from __future__ import annotations

import zlib
from typing import Final

from fetcher.footer import ZSTD_MAGICS

HEAD: Final = 4096
"""How many of a blob's first bytes are worth reading for this."""

_TAR_MAGIC: Final = slice(257, 262)

_MAGICS: Final = (
    (b"BZh", "bzip2-compressed data"),
    (b"\xfd7zXZ\x00", "xz-compressed data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"hsqs", "a squashfs image"),
    (b"\x7fELF", "an ELF program or library"),
)


def describe_blob(head: bytes, tail: bytes) -> str:
    """What a blob seems to be, as the end of a sentence; `head` and `tail` are its first and last bytes."""
    if not head:
        return "an empty file"
    if head.startswith(b"\x1f\x8b"):
        inner = _inflated(head)
        if inner[_TAR_MAGIC] == b"ustar":
            return "an ordinary tar+gzip layer, without a table of contents"
        return "gzip-compressed data, but no tar archive"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        if tail[-8:] in ZSTD_MAGICS:
            return "a damaged zstd:chunked layer, or one of an unknown kind"
        return "a zstd-compressed layer, without a table of contents"
    if head[_TAR_MAGIC] == b"ustar":
        return "an uncompressed tar layer"
    for magic, name in _MAGICS:
        if head.startswith(magic):
            return f"{name}, and no layer"
    if head.lstrip()[:1] in (b"{", b"["):
        return "JSON, so a manifest or an image's config perhaps, and no layer"
    return f"data of an unknown kind, which begins with {head[:8].hex()}"


def _inflated(head: bytes) -> bytes:
    """What can be had of the first block of a gzip stream that is cut off."""
    try:
        return zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return b""
