"""Hand-made layers: readable entries in, the bytes of an eStargz or plain gzip layer out.

    layer = build([dir("usr/"), file("usr/hello", b"hello"), symlink("usr/hi", "hello")])

Written from the eStargz specification, independently of the package `fetcher`, so
that the two can be held against each other. The layout of a blob:

    member   tar headers up to and with that of the first file that has bytes
    member   its bytes (one member a chunk), padding, and the headers up to the next such file
    ...
    member   the tar entry stargz.index.json (the TOC) and the end of the archive
    footer   an empty member whose Extra field carries the offset of the TOC's member
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypedDict

from tests.members import Members

ESTARGZ_TOC: Final = "stargz.index.json"
LANDMARK: Final = ".prefetch.landmark"
NO_LANDMARK: Final = ".no.prefetch.landmark"
GZIP_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
MTIME: Final = 1_600_000_000
"""The time of an entry that was given none: 2020-09-13T12:26:40Z."""

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
BLOCK = 512
_TYPES = {
    "dir": tarfile.DIRTYPE,
    "reg": tarfile.REGTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


class TocEntry(TypedDict, total=False):
    """An entry of the TOC, in the specification's own names."""

    name: str
    type: str
    size: int
    modtime: str
    linkName: str
    mode: int
    uid: int
    gid: int
    devMajor: int
    devMinor: int
    xattrs: dict[str, str]
    digest: str
    offset: int
    innerOffset: int
    chunkOffset: int
    chunkSize: int
    chunkDigest: str
    chunkType: str
    endOffset: int
    accesstime: str
    changetime: str


class Toc(TypedDict):
    """The TOC's JSON."""

    version: int
    entries: list[TocEntry]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tar entry; `type` is the TOC's word for it."""

    name: str
    type: str
    mode: int
    content: bytes = b""
    target: str = ""
    uid: int = 0
    gid: int = 0
    mtime: int = MTIME
    major: int = 0
    minor: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blob and what a manifest, a config and the labels say of it.

    `toc_json` and `toc_digest` are empty for a plain layer.
    """

    blob: bytes
    diff_id: str
    uncompressed_size: int
    toc_json: bytes = b""
    toc_digest: str = ""
    media_type: str = GZIP_LAYER

    @property
    def digest(self) -> str:
        return sha256(self.blob)

    @property
    def annotations(self) -> dict[str, str]:
        """What the layer's descriptor carries in a manifest."""
        if not self.toc_digest:
            return {}
        return {TOC_DIGEST: self.toc_digest, UNCOMPRESSED_SIZE: str(self.uncompressed_size)}


def dir(
    name: str,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
    xattrs: Mapping[str, bytes] | None = None,
) -> Entry:
    return Entry(name, "dir", mode, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs or {})


def file(
    name: str,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
    xattrs: Mapping[str, bytes] | None = None,
) -> Entry:
    return Entry(name, "reg", mode, content=content, uid=uid, gid=gid, mtime=mtime, xattrs=xattrs or {})


def symlink(name: str, target: str, *, uid: int = 0, gid: int = 0, mtime: int = MTIME) -> Entry:
    return Entry(name, "symlink", 0o777, target=target, uid=uid, gid=gid, mtime=mtime)


def hardlink(name: str, target: str) -> Entry:
    """`target` is the archive path of the other name, whose attributes the entry repeats, as tar does."""
    return Entry(name, "hardlink", 0o644, target=target)


def chardev(
    name: str, major: int, minor: int, *, mode: int = 0o600, uid: int = 0, gid: int = 0, mtime: int = MTIME
) -> Entry:
    return Entry(name, "char", mode, uid=uid, gid=gid, mtime=mtime, major=major, minor=minor)


def blockdev(
    name: str, major: int, minor: int, *, mode: int = 0o600, uid: int = 0, gid: int = 0, mtime: int = MTIME
) -> Entry:
    return Entry(name, "block", mode, uid=uid, gid=gid, mtime=mtime, major=major, minor=minor)


def fifo(name: str, *, mode: int = 0o600, uid: int = 0, gid: int = 0, mtime: int = MTIME) -> Entry:
    return Entry(name, "fifo", mode, uid=uid, gid=gid, mtime=mtime)


def whiteout(name: str) -> Entry:
    """Hides `name` of the layers below."""
    parent, slash, hidden = name.rpartition("/")
    return file(f"{parent}{slash}.wh.{hidden}")


def opaque(directory: str) -> Entry:
    """Hides everything that the layers below have in `directory`."""
    return file(directory.rstrip("/") + "/.wh..wh..opq")


def landmark() -> Entry:
    """What stands before it is to be prefetched."""
    return file(LANDMARK, b"\x0f")


def no_landmark() -> Entry:
    """Nothing is to be prefetched."""
    return file(NO_LANDMARK, b"\x0f")


def build(
    entries: Iterable[Entry],
    *,
    chunk_size: int = 4 << 20,
    min_chunk_size: int = 0,
    prefix: str = "",
    level: int = 6,
    legacy_footer: bool = False,
    omit_chunk_digests: bool = False,
    toc_mutate: Callable[[Toc], None] | None = None,
) -> Layer:
    """An eStargz layer.

    `min_chunk_size`: a member is filled up to so many uncompressed bytes before another is begun, so that
    several files share one and carry `innerOffset`. `prefix` stands before every name, "./" or "/" say.
    `toc_mutate` changes the TOC in place before it is written; blob, TOC digest and DiffID follow it.
    """
    members = Members(lambda: zlib.compressobj(level, wbits=31))
    listed = lay_out(
        members,
        archived(entries, prefix),
        chunk_size=chunk_size,
        min_chunk_size=min_chunk_size,
        omit_chunk_digests=omit_chunk_digests,
    )
    toc = Toc(version=1, entries=listed)
    if toc_mutate is not None:
        toc_mutate(toc)
    toc_json = json.dumps(toc, indent="\t").encode()
    toc_offset = members.offset
    members.write(tar_header(Entry(ESTARGZ_TOC, "reg", 0o444, content=toc_json, mtime=0)))
    members.write(toc_json + tar_padding(len(toc_json)) + bytes(2 * BLOCK))
    members.close()
    footer = legacy_footer_bytes(toc_offset) if legacy_footer else footer_bytes(toc_offset)
    return Layer(
        members.blob() + footer,
        members.diff_id(),
        members.uncompressed,
        toc_json=toc_json,
        toc_digest=sha256(toc_json),
    )


def lay_out(
    members: Members,
    entries: Iterable[Entry],
    *,
    chunk_size: int,
    min_chunk_size: int = 0,
    omit_chunk_digests: bool = False,
) -> list[TocEntry]:
    """Write archived entries, with the chunks of files in members of their own; the TOC's entries."""
    listed: list[TocEntry] = []
    for entry in entries:
        members.write(tar_header(entry))
        described = toc_entry(entry)
        listed.append(described)
        if not entry.content:
            continue
        described["digest"] = sha256(entry.content)
        for start in range(0, len(entry.content), chunk_size):
            piece = entry.content[start : start + chunk_size]
            if members.inner >= min_chunk_size or entry.name.endswith((LANDMARK, NO_LANDMARK)):
                members.close()
            if start:
                described = TocEntry(name=entry.name, type="chunk", chunkOffset=start)
                listed.append(described)
            described["offset"] = members.offset
            if members.inner:
                described["innerOffset"] = members.inner
            if start + chunk_size < len(entry.content):
                described["chunkSize"] = chunk_size
            if not omit_chunk_digests:
                described["chunkDigest"] = sha256(piece)
            members.write(piece)
        members.write(tar_padding(len(entry.content)))
    members.close()
    return listed


def plain(entries: Iterable[Entry], *, level: int = 6) -> Layer:
    """An ordinary tar+gzip layer, without a TOC."""
    tar = bytearray()
    for entry in archived(entries):
        tar += tar_header(entry) + entry.content + tar_padding(len(entry.content))
    tar += bytes(2 * BLOCK)
    return Layer(gzip.compress(tar, level, mtime=0), sha256(tar), len(tar))


def footer_bytes(toc_offset: int) -> bytes:
    """The 51 bytes at the end of an eStargz blob."""
    return _empty_member(b"SG\x16\x00" + b"%016xSTARGZ" % toc_offset)


def legacy_footer_bytes(toc_offset: int) -> bytes:
    """The 47 bytes at the end of a stargz blob, which has no subfield header."""
    return _empty_member(b"%016xSTARGZ" % toc_offset)


def _empty_member(extra: bytes) -> bytes:
    header = b"\x1f\x8b\x08\x04\x00\x00\x00\x00\x00\xff" + len(extra).to_bytes(2, "little")
    return header + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def archived(entries: Iterable[Entry], prefix: str = "") -> Iterator[Entry]:
    """The entries as they are archived: with the prefix, and hard links with their target's attributes."""
    seen: dict[str, Entry] = {}
    for entry in entries:
        named = replace(entry, name=prefix + entry.name)
        if entry.type == "hardlink":
            other = seen.get(entry.target, entry)
            named = replace(
                named,
                target=prefix + entry.target,
                mode=other.mode,
                uid=other.uid,
                gid=other.gid,
                mtime=other.mtime,
            )
        seen[entry.name] = named
        yield named


def tar_header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.name)
    info.type = _TYPES[entry.type]
    info.mode = entry.mode
    info.uid, info.gid = entry.uid, entry.gid
    info.mtime = entry.mtime
    info.size = len(entry.content)
    info.linkname = entry.target
    info.devmajor, info.devminor = entry.major, entry.minor
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in entry.xattrs.items()
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def toc_entry(entry: Entry) -> TocEntry:
    """The TOC's entry but for where its bytes are; zero fields are left out, as Go's encoder does."""
    toc = TocEntry(name=entry.name, type=entry.type, mode=entry.mode)
    toc["modtime"] = datetime.fromtimestamp(entry.mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if entry.content:
        toc["size"] = len(entry.content)
    if entry.target:
        toc["linkName"] = entry.target
    if entry.uid:
        toc["uid"] = entry.uid
    if entry.gid:
        toc["gid"] = entry.gid
    if entry.major:
        toc["devMajor"] = entry.major
    if entry.minor:
        toc["devMinor"] = entry.minor
    if entry.xattrs:
        toc["xattrs"] = {name: base64.b64encode(value).decode() for name, value in entry.xattrs.items()}
    return toc


def tar_padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def sha256(data: bytes | bytearray) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
