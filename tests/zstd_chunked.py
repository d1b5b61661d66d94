"""Hand-made zstd:chunked layers, beside `tests.estargz`: the same entries in, the bytes of a layer out.

Written from what the two programs that made the format up say of it, independently of the package `fetcher`.
Both lay a blob out as zstd frames of the tar, then skippable frames:

    frames        stargz-snapshotter: as eStargz's members; containers/storage: each chunk in one of its own,
                  and what is between two files in another
    skippable     the TOC, a zstd frame of JSON
    skippable     containers/storage, but for its first versions: tar-split's data
    skippable     the footer
"""

from __future__ import annotations

import enum
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import zstandard

from tests.estargz import (
    BLOCK,
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
    Entry,
    Layer,
    Toc,
    TocEntry,
    archived,
    lay_out,
    sha256,
    tar_header,
    tar_padding,
    toc_entry,
)
from tests.members import Members

ZSTD_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
_TAR_SPLIT = b"tar-split's own JSON lines, which nobody here reads"
_HOLE = 1024
"""So many zeros make a chunk of their own, of the type `zeros`."""


class Variant(enum.Enum):
    """Whose zstd:chunked it is."""

    STARGZ = "stargz"
    CONTAINERS = "containers"
    FIRST_CONTAINERS = "first containers"
    """containers/storage before tar-split: with stargz-snapshotter's annotations and footer."""


_PREFIXES: Final = {
    Variant.STARGZ: "io.containers.zstd-chunked",
    Variant.CONTAINERS: "io.github.containers.zstd-chunked",
    Variant.FIRST_CONTAINERS: "io.containers.zstd-chunked",
}


@dataclass(frozen=True, slots=True)
class ZstdLayer(Layer):
    """`toc_digest` is of the JSON in stargz-snapshotter's, of the compressed TOC in containers/storage's."""

    variant: Variant = Variant.STARGZ
    position: str = ""
    checksum: str = ""

    @property
    def annotations(self) -> dict[str, str]:
        """What the layer's descriptor carries in a manifest."""
        prefix = _PREFIXES[self.variant]
        promised = {
            f"{prefix}.manifest-checksum": self.checksum,
            f"{prefix}.manifest-position": self.position,
        }
        if self.variant is Variant.STARGZ:
            promised |= {TOC_DIGEST: self.toc_digest, UNCOMPRESSED_SIZE: str(self.uncompressed_size)}
        return promised


def build_zstd(
    entries: Iterable[Entry],
    variant: Variant = Variant.STARGZ,
    *,
    chunk_size: int = 4 << 20,
    min_chunk_size: int = 0,
    prefix: str = "",
    level: int = 3,
    toc_mutate: Callable[[Toc], None] | None = None,
) -> ZstdLayer:
    """A zstd:chunked layer. `min_chunk_size`: stargz-snapshotter's alone; the rest as in `tests.estargz`."""
    members = Members(lambda: zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj())
    named = archived(entries, prefix)
    if variant is Variant.STARGZ:
        listed = lay_out(members, named, chunk_size=chunk_size, min_chunk_size=min_chunk_size)
    else:
        listed = _lay_out_chunks(members, named, chunk_size)
    members.write(bytes(2 * BLOCK))
    members.close()
    toc = Toc(version=1, entries=listed)
    if toc_mutate is not None:
        toc_mutate(toc)
    document: dict[str, object] = dict(toc)
    if variant is Variant.CONTAINERS:
        document["tarSplitDigest"] = sha256(_TAR_SPLIT)
    toc_json = json.dumps(document, separators=(",", ":")).encode()
    packed = zstandard.ZstdCompressor(level=level).compress(toc_json)
    offset = members.offset + 8
    return ZstdLayer(
        members.blob() + end_of_blob(packed, len(toc_json), offset, variant),
        members.diff_id(),
        members.uncompressed,
        toc_json=toc_json,
        toc_digest=sha256(toc_json if variant is Variant.STARGZ else packed),
        media_type=ZSTD_LAYER,
        variant=variant,
        position=f"{offset}:{len(packed)}:{len(toc_json)}:1",
        checksum=sha256(packed),
    )


def end_of_blob(packed: bytes, size: int, offset: int, variant: Variant, *, kind: int = 1) -> bytes:
    """The skippable frames: a compressed TOC of `size` bytes, which begins at `offset` of the blob."""
    toc = skippable(packed)
    if variant is not Variant.CONTAINERS:
        return toc + zstd_footer(offset, len(packed), size, kind=kind)
    split = zstandard.ZstdCompressor().compress(_TAR_SPLIT)
    split_offset = offset + len(packed) + 8
    numbers = (offset, len(packed), size, kind, split_offset, len(split), len(_TAR_SPLIT))
    return toc + skippable(split) + skippable(struct.pack("<7Q", *numbers) + b"GNUlInUx")


def zstd_footer(offset: int, compressed: int, size: int, *, kind: int = 1) -> bytes:
    """The 48 bytes at the end of stargz-snapshotter's blobs."""
    return skippable(struct.pack("<4Q", offset, compressed, size, kind) + b"GnUlInUx")


def skippable(data: bytes) -> bytes:
    """A frame that decoders pass over (RFC 8878, section 3.1.2)."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data


def _lay_out_chunks(members: Members, entries: Iterable[Entry], chunk_size: int) -> list[TocEntry]:
    """containers/storage's way: holes apart, and `chunkDigest` only where a file has several chunks."""
    listed: list[TocEntry] = []
    for entry in entries:
        members.write(tar_header(entry))
        described = toc_entry(entry)
        described["accesstime"] = described["changetime"] = "0001-01-01T00:00:00Z"
        listed.append(described)
        if not entry.content:
            continue
        members.close()
        described["digest"] = sha256(entry.content)
        chunks = list(_cut(entry.content, chunk_size))
        for number, (start, piece) in enumerate(chunks):
            chunk = described
            if number:
                chunk = TocEntry(name=entry.name, type="chunk", chunkOffset=start)
                listed.append(chunk)
            chunk["offset"] = members.offset
            if len(chunks) > 1:
                chunk["chunkSize"] = len(piece)
                chunk["chunkDigest"] = sha256(piece)
                if not piece.strip(b"\0"):
                    chunk["chunkType"] = "zeros"
            members.write(piece)
            members.close()
        described["endOffset"] = members.offset
        members.write(tar_padding(len(entry.content)))
    return listed


def _cut(content: bytes, chunk_size: int) -> Iterator[tuple[int, bytes]]:
    """Pieces of a file with their offsets: holes whole, the rest in pieces of at most `chunk_size`."""
    position = 0
    for hole in re.finditer(rb"\0{%d,}" % _HOLE, content):
        yield from _pieces(content[: hole.start()], position, chunk_size)
        yield hole.start(), hole[0]
        position = hole.end()
    yield from _pieces(content, position, chunk_size)


def _pieces(content: bytes, position: int, chunk_size: int) -> Iterator[tuple[int, bytes]]:
    while position < len(content):
        piece = content[position : position + chunk_size]
        yield position, piece
        position += len(piece)
