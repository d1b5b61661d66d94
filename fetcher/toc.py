"""The eStargz table of contents: gzip member to typed entries. Pure; no I/O.

Follows the eStargz specification: the TOC is the blob's last tar entry,
`stargz.index.json`, in a gzip member of its own; its digest is the sha256 of
the uncompressed JSON.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import Final

import msgspec

from fetcher.errors import FormatError, InvalidToc, VerificationError
from fetcher.inflate import inflate

TOC_NAME: Final = "stargz.index.json"
TOC_LIMIT: Final = 256 << 20
"""The largest uncompressed TOC taken, in bytes: about a million files. Memory stays bounded by it."""

_TAR_BLOCK = 512


class TocEntry(msgspec.Struct, gc=False, rename="camel"):
    """One entry as the specification has it; sizes and offsets in bytes."""

    name: str
    type: str
    size: int = 0
    modtime: str = ""
    link_name: str = ""
    mode: int = 0
    uid: int = 0
    gid: int = 0
    dev_major: int = 0
    dev_minor: int = 0
    xattrs: dict[str, bytes] | None = None
    digest: str = ""
    offset: int = 0
    inner_offset: int = 0
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""


class Toc(msgspec.Struct):
    """A decoded TOC, entries in the blob's order."""

    version: int
    entries: list[TocEntry] = []


class _Document(msgspec.Struct):
    version: int
    entries: list[TocEntry] | None = None
    """Go writes an empty list as null."""


_decoder = msgspec.json.Decoder(_Document)


def unpack_toc(member: bytes) -> bytes:
    """The TOC's JSON out of its gzip member (the bytes from the TOC offset to the footer).

    Raises InvalidToc if it is no gzip member, no tar entry of that name, or larger than TOC_LIMIT.
    """
    try:
        out = inflate(member, TOC_LIMIT + _TAR_BLOCK)
    except FormatError as error:
        raise InvalidToc(f"the table of contents is not a gzip member: {error}") from error
    try:
        header = tarfile.TarInfo.frombuf(out[:_TAR_BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise InvalidToc(f"the table of contents is not a tar entry: {error}") from error
    if header.name != TOC_NAME:
        raise InvalidToc(f"the tar entry at the TOC offset is {header.name!r}, not {TOC_NAME!r}")
    if not 0 <= header.size <= TOC_LIMIT:
        raise InvalidToc(f"the table of contents has {header.size} bytes; up to {TOC_LIMIT} are allowed")
    if len(out) - _TAR_BLOCK < header.size:
        raise InvalidToc(f"the table of contents is cut off: {len(out) - _TAR_BLOCK} of {header.size} bytes")
    return out[_TAR_BLOCK : _TAR_BLOCK + header.size]


def toc_digest(json: bytes) -> str:
    """The digest of a TOC as annotations carry it, `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(json).hexdigest()


def verify_toc(json: bytes, expected: str) -> None:
    """Raise VerificationError unless `json` has the digest `expected`."""
    actual = toc_digest(json)
    if actual != expected:
        raise VerificationError(f"the table of contents has digest {actual}, the image promises {expected}")


def parse_toc(json: bytes) -> Toc:
    """Decode a TOC; raises InvalidToc where it is not JSON of the specified shape or version."""
    try:
        document = _decoder.decode(json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidToc(f"the table of contents cannot be decoded: {error}") from error
    if document.version != 1:
        raise InvalidToc(f"the table of contents has version {document.version}; only version 1 is known")
    return Toc(document.version, document.entries or [])
