"""What a conversion is told, and what it answers. Values alone."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

CHUNK_SIZE: Final = 4 << 20
"""Bytes of a chunk, unless told otherwise; stargz-snapshotter's default too."""
SIZE_LIMIT: Final = 64 << 20
"""The largest chunk, and the largest minimum of a member, in bytes: each is held in memory as a whole."""


class LayerFormat(enum.Enum):
    """The lazily readable formats that can be written."""

    ESTARGZ = "estargz"
    ZSTD_CHUNKED = "zstd:chunked"


LEVELS: Final = {LayerFormat.ESTARGZ: range(1, 13), LayerFormat.ZSTD_CHUNKED: range(1, 23)}
"""The levels of each format: libdeflate's (up to 9 they are gzip's) and zstd's."""
DEFAULT_LEVELS: Final = {LayerFormat.ESTARGZ: 9, LayerFormat.ZSTD_CHUNKED: 3}
"""What ctr-remote takes where it is told none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """How a layer is to be written; raises ValueError for what is out of range.

    `level` 0 is the format's default. Files are cut into chunks of `chunk_size` bytes. A member is filled up
    to `min_chunk_size` bytes of uncompressed data before a file begins another, so that small files share
    one; with 0 each has its own. `prioritized` are paths inside this layer in the order of access, for what
    stands before the prefetch landmark; None or () for a layer without prefetch.
    """

    format: LayerFormat = LayerFormat.ESTARGZ
    level: int = 0
    chunk_size: int = CHUNK_SIZE
    min_chunk_size: int = 0
    prioritized: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.level:
            object.__setattr__(self, "level", DEFAULT_LEVELS[self.format])
        levels = LEVELS[self.format]
        if self.level not in levels:
            raise ValueError(
                f"{self.format.value} has the levels {levels.start} to {levels.stop - 1}, not {self.level}"
            )
        if not 0 < self.chunk_size <= SIZE_LIMIT:
            raise ValueError(f"a chunk has 1 to {SIZE_LIMIT} bytes, not {self.chunk_size}")
        if not 0 <= self.min_chunk_size <= SIZE_LIMIT:
            raise ValueError(f"the minimum of a member is 0 to {SIZE_LIMIT} bytes, not {self.min_chunk_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedLayer:
    """A layer that was written to `path`; sizes in bytes, digests as `sha256:<hex>`.

    `annotations` belong on the layer's descriptor. `missing` are the prioritized paths that the layer does
    not have.
    """

    path: str
    digest: str
    size: int
    diff_id: str
    toc_digest: str
    uncompressed_size: int
    annotations: dict[str, str]
    missing: tuple[str, ...] = ()
