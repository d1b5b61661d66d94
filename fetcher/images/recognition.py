"""What the file at a bare path is: an archive of images, or one layer. Blocking.

A tar of a file system is a layer, compressed or not. A tar of images is an archive; a compressed one is
refused, as it cannot be read in parts.
"""

from __future__ import annotations

import enum
import os
import re
import tarfile
import zlib
from typing import Final

from fetcher.errors import FormatError
from fetcher.images.tar_index import MemberKind, opened, tar_members
from fetcher.listing import clean_path
from fetcher.sniffing import HEAD, describe_blob

GZIP_MAGIC: Final = b"\x1f\x8b"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
LONG_HEAD: Final = 256 << 10
"""Bytes of a blob's beginning: more than a block of zstd has, so that something comes out of it."""

_DEEPEST: Final = 3
"""Parts of blobs/sha256/<digest>: nothing in an archive of images lies deeper."""
_ARCHIVED: Final = re.compile(
    r"manifest\.json|repositories|oci-layout|index\.json|blobs(?:/.*)?|(?:sha256:)?[0-9a-f]{64}(?:[./].*)?"
)
"""What an archive of images begins with."""


class FileKind(enum.Enum):
    """What a file is read as."""

    ARCHIVE = "archive"
    LAYER = "layer"


def recognize(path: str) -> FileKind:
    """What is in a file, not what it is called.

    Raises FormatError that names what was found instead; SourceNotFound, StoreError.
    """
    with opened(path) as file:
        head = file.read(LONG_HEAD)
        file.seek(max(0, os.fstat(file.fileno()).st_size - HEAD))
        tail = file.read(HEAD)
    inner = decompressed_head(head)
    if inner is None:
        if is_tar(head):
            return _plain_kind(path)
    elif is_tar(inner):
        if _ARCHIVED.fullmatch(_first_name(inner)):
            check_uncompressed(path)
        return FileKind.LAYER
    found = describe_blob(head[:HEAD], tail)
    raise FormatError(f"{path} is {found}: neither an archive of images nor a layer")


def check_uncompressed(path: str) -> None:
    """See that what is said to be an archive of images can be read in parts.

    Raises FormatError for a compressed one; SourceNotFound, StoreError.
    """
    with opened(path) as file:
        head = file.read(len(ZSTD_MAGIC))
    if head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        raise FormatError(f"{path} is compressed, and cannot be read in parts: decompress it first")


def decompressed_head(head: bytes) -> bytes | None:
    """The first bytes of what a blob that begins with `head` decompresses to; None for an uncompressed one.

    b"" where nothing can be had.
    """
    if head.startswith(GZIP_MAGIC):
        try:
            return zlib.decompressobj(31).decompress(head, HEAD)
        except zlib.error:
            return b""
    if head.startswith(ZSTD_MAGIC):
        import zstandard

        try:
            return zstandard.ZstdDecompressor().decompressobj().decompress(head)[:HEAD]
        except zstandard.ZstdError:
            return b""
    return None


def layer_format(head: bytes) -> str:
    """What a layer without a table of contents is: "tar", "tar+gzip", "tar+zstd" or "other"."""
    inner = decompressed_head(head)
    if not is_tar(head if inner is None else inner):
        return "other"
    if inner is None:
        return "tar"
    return "tar+gzip" if head.startswith(GZIP_MAGIC) else "tar+zstd"


def is_tar(head: bytes) -> bool:
    """Whether data that begins with `head` is a tar: its first header's checksum is right, or it is empty."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(head) >= 512 and not any(head[:512])
    return True


def _first_name(tar: bytes) -> str:
    """The name of a tar's first entry; "" if it has none."""
    return clean_path(tarfile.TarInfo.frombuf(tar[:512], "utf-8", "surrogateescape").name) if any(tar) else ""


def _plain_kind(path: str) -> FileKind:
    names = set()
    for member in tar_members(path):
        if member.name.count("/") >= _DEEPEST or member.kind is MemberKind.OTHER:
            break
        names.add(member.name)
    else:
        if "manifest.json" in names or {"index.json", "oci-layout"} <= names:
            return FileKind.ARCHIVE
    return FileKind.LAYER
