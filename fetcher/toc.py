"""The table of contents of an eStargz or zstd:chunked layer: out of the blob, to typed entries. Pure; no I/O.

eStargz: the TOC is the blob's last tar entry, `stargz.index.json`, in a gzip
member of its own; its digest is the sha256 of the JSON.

zstd:chunked: the JSON in a zstd frame in a skippable frame. stargz-snapshotter
digests the JSON, containers/storage the zstd frame. What was digested is what
a node keeps, so that what lies on disk can be verified against the image's own
promise: `TocBytes` is one or the other, and says by its first bytes which.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from json import loads
from typing import Final, Generic, TypeVar

import msgspec

from fetcher.errors import FormatError, InvalidToc, VerificationError
from fetcher.footer import SKIPPABLE, SKIPPABLE_HEADER
from fetcher.inflate import MemberInflater, inflate
from fetcher.typed import Converter

TOC_NAME: Final = "stargz.index.json"
TOC_LIMIT: Final = 256 << 20
"""The largest uncompressed TOC taken, in bytes: about a million files. Memory stays bounded by it."""

_SURROGATES_LIMIT: Final = 32 << 20
"""Bytes of a TOC with names that are not UTF-8: the decoder that takes them needs ten times the memory."""

ENTRY_LIMIT: Final = 1 << 20
"""Entries of a TOC. A tree takes about 0.7 KB for each; in a TOC one may take 22 bytes."""
_LEAST_ENTRY: Final = len('{"name":"","type":""},')
_STRING_LIMIT: Final = 16 * ENTRY_LIMIT
"""Strings of a TOC, keys included: an entry of an ordinary one has 15 to 20."""

_TAR_BLOCK = 512
_ZSTD_FRAME = b"\x28\xb5\x2f\xfd"

TocBytes = bytes
"""A TOC as its digest is of it: JSON, or JSON in a zstd frame."""


class ShownEntry(msgspec.Struct, gc=False, rename="camel"):
    """What a mounted tree shows of an entry; sizes in bytes."""

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


class TocEntry(ShownEntry, gc=False, rename="camel"):
    """One entry as the specification has it, with where its bytes are; sizes and offsets in bytes."""

    digest: str = ""
    offset: int = 0
    inner_offset: int = 0
    chunk_offset: int = 0
    chunk_size: int = 0
    chunk_digest: str = ""


Entry = TypeVar("Entry", bound=ShownEntry)


class Toc(msgspec.Struct, Generic[Entry]):
    """A decoded TOC, entries in the blob's order."""

    version: int
    entries: list[Entry] = []


class _Document(msgspec.Struct, Generic[Entry]):
    version: int
    entries: list[Entry] | None = None
    """Go writes an empty list as null."""


@dataclass(frozen=True, slots=True)
class _Form(Generic[Entry]):
    """What is decoded of each entry."""

    decoder: msgspec.json.Decoder[_Document[Entry]]
    converter: Converter[_Document[Entry]]


_WHOLE: Final = _Form(msgspec.json.Decoder(_Document[TocEntry]), Converter(_Document[TocEntry]))
_SHOWN: Final = _Form(msgspec.json.Decoder(_Document[ShownEntry]), Converter(_Document[ShownEntry]))


def unpack_toc(member: bytes) -> TocBytes:
    """The TOC out of the bytes that hold it, from the TOC offset on: JSON, or JSON in a zstd frame.

    Raises InvalidToc if they are no gzip member with a tar entry of that name and no skippable frame, or
    hold more than TOC_LIMIT.
    """
    if member.startswith(SKIPPABLE):
        length = int.from_bytes(member[4:SKIPPABLE_HEADER], "little")
        if length != len(member) - SKIPPABLE_HEADER or not member.startswith(_ZSTD_FRAME, SKIPPABLE_HEADER):
            raise InvalidToc("the skippable frame at the TOC offset does not hold the table of contents")
        return member[SKIPPABLE_HEADER:]
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


def toc_json(toc: TocBytes) -> bytes:
    """The JSON of a TOC in either form. Raises InvalidToc if it is damaged, or larger than TOC_LIMIT."""
    if not toc.startswith(_ZSTD_FRAME):
        return toc
    try:
        json = b"".join(MemberInflater(TOC_LIMIT + 1).feed(toc))
    except FormatError as error:
        raise InvalidToc(f"the table of contents cannot be decompressed: {error}") from error
    if len(json) > TOC_LIMIT:
        raise InvalidToc(f"the table of contents has more than the {TOC_LIMIT} bytes that are allowed")
    return json


def verified_toc(toc: TocBytes, promised: str | None) -> TocBytes:
    """The form of the TOC that has the digest `promised`; JSON if none is, as nothing vouches for it then.

    Raises VerificationError if neither form has it or the TOC is empty, InvalidToc as `toc_json`.
    """
    if promised is None or toc_digest(toc) != promised:
        toc = toc_json(toc)
    if promised is not None:
        verify_toc(toc, promised)
    if not toc:
        raise VerificationError("the table of contents is empty")
    return toc


def toc_digest(toc: TocBytes) -> str:
    """The digest of a TOC as annotations carry it, `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(toc).hexdigest()


def verify_toc(toc: TocBytes, expected: str) -> None:
    """Raise VerificationError unless `toc` has the digest `expected`."""
    actual = toc_digest(toc)
    if actual != expected:
        raise VerificationError(f"the table of contents has digest {actual}, the image promises {expected}")


def parse_toc(toc: TocBytes) -> Toc[TocEntry]:
    """Decode a TOC; raises InvalidToc where it is not JSON of the specified shape or version, or too much."""
    return _parse(toc, _WHOLE)


def parse_shown(toc: TocBytes) -> Toc[ShownEntry]:
    """Decode what a mounted tree shows, in half the memory; raises as `parse_toc`."""
    return _parse(toc, _SHOWN)


def _parse(toc: TocBytes, form: _Form[Entry]) -> Toc[Entry]:
    json = toc_json(toc)
    # Each entry has a brace and each string two quotes, so counting those bounds what decoding will take.
    if len(json) > _LEAST_ENTRY * ENTRY_LIMIT and (
        json.count(b"{") > ENTRY_LIMIT or json.count(b'"') > 2 * _STRING_LIMIT
    ):
        raise InvalidToc(f"the table of contents has more than the {ENTRY_LIMIT} entries that are allowed")
    try:
        document = _decode(json, form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidToc(f"the table of contents cannot be decoded: {error}") from error
    if document.version != 1:
        raise InvalidToc(f"the table of contents has version {document.version}; only version 1 is known")
    return Toc(document.version, document.entries or [])


def _decode(json: bytes, form: _Form[Entry]) -> _Document[Entry]:
    """Names need not be UTF-8: bytes that are none come as lone surrogates, as `os.fsdecode` has them."""
    try:
        return form.decoder.decode(json)
    except msgspec.DecodeError as error:
        if "surrogate" not in str(error) or len(json) > _SURROGATES_LIMIT:
            raise
    try:
        document = form.converter.convert(loads(json))
        for entry in document.entries or []:
            entry.name, entry.link_name = _canonical(entry.name), _canonical(entry.link_name)
            if entry.xattrs:
                entry.xattrs = {_canonical(name): value for name, value in entry.xattrs.items()}
    except ValueError as error:
        raise msgspec.DecodeError(str(error)) from error
    return document


def _canonical(name: str) -> str:
    """The one spelling of a name's bytes; raises ValueError for what stands for no bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
