"""What a blob is said to be that has no table of contents."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest

from fetcher.sniffing import HEAD, describe_blob


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(mode="w", fileobj=out) as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("blob", "what"),
    [
        (b"", "an empty file"),
        (gzip.compress(_tar()), "an ordinary tar+gzip layer, without a table of contents"),
        (gzip.compress(bytes(1000)), "gzip-compressed data, but no tar archive"),
        (b"\x1f\x8b\x08\x00cut", "gzip-compressed data, but no tar archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(90), "a zstd-compressed layer, without a table of contents"),
        (
            b"\x28\xb5\x2f\xfd" + bytes(90) + b"GnUlInUx",
            "a damaged zstd:chunked layer, or one of an unknown kind",
        ),
        (
            b"\x28\xb5\x2f\xfd" + bytes(90) + b"GNUlInUx",
            "a damaged zstd:chunked layer, or one of an unknown kind",
        ),
        (_tar(), "an uncompressed tar layer"),
        (b"BZh91AY", "bzip2-compressed data, and no layer"),
        (b"\n {}", "JSON, so a manifest or an image's config perhaps, and no layer"),
        (b"\x7fELF\x02", "an ELF program or library, and no layer"),
        (
            bytes(range(9)),
            "data of an unknown kind, which begins with 0001020304050607",
        ),
    ],
)
def test_kinds(blob: bytes, what: str) -> None:
    assert describe_blob(blob[:HEAD], blob[-51:]) == what
