"""Opening a layer: from a blob to a verified table of contents in the store.

One speculative request for the blob's tail brings footer and TOC together; only
a TOC larger than the guess costs a second one.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.errors import FetchError, InvalidToc, StoreError
from fetcher.footer import LONGEST_FOOTER, ZSTD_MAGICS, parse_footer
from fetcher.progress import Field
from fetcher.store import LayerRecord, LayerStore, Source
from fetcher.toc import TocBytes, toc_digest, toc_json, unpack_toc, verified_toc

_SMALLEST_TAIL: Final = 32 << 10
_SMALL_TAIL: Final = 384 << 10
_LARGEST_TAIL: Final = 4 << 20
_TAIL_SHARE: Final = 100
"""The guess: TOCs of real images take 0.4 to 1 % of the blob, so ask for its last 100th; what is too much of
it takes its time on a slow link. Of layers of some 20 MB, full of small files perhaps, they take up to
1.9 %, and twice as much costs less than a request."""
_COMPRESSED_LIMIT: Final = 64 << 20
"""Bytes of a TOC as it comes: half of one are digests, so of TOC_LIMIT no more than that is left."""
_unpacking: Final = threading.BoundedSemaphore(os.cpu_count() or 1)
"""A TOC of a few KB may unpack to TOC_LIMIT: no more of them at a time than there are processors."""


@dataclass(frozen=True, slots=True)
class FetchedToc:
    """A TOC, and where the members end in a blob of `blob_size` bytes, of which `fetched` were read.

    `zstd` says that the blob is zstd:chunked, and no eStargz.
    """

    kept: TocBytes
    """The form of it that its digest is of."""
    offset: int
    blob_size: int
    fetched: int
    zstd: bool

    @property
    def json(self) -> bytes:
        """The JSON; raises InvalidToc."""
        return toc_json(self.kept)


async def open_layer(
    store: LayerStore,
    blob: Blob,
    *,
    digest: str,
    size: int | None,
    promised_toc_digest: str | None,
    source: Source,
    image: str,
) -> str:
    """Fetch, verify and keep the TOC of a layer; returns its layer key.

    `size` is the blob's in bytes, None if unknown. Without `promised_toc_digest` the TOC cannot be
    verified; whether that is allowed is the caller's to decide. Raises NotEstargz for an ordinary
    layer, and any other FetchError.
    """
    toc = await fetch_toc(blob, size=size, promised=promised_toc_digest)
    record = LayerRecord(
        digest=digest,
        toc_digest=promised_toc_digest or toc_digest(toc.kept),
        size=toc.blob_size,
        toc_offset=toc.offset,
        sources=[source],
        images=[image],
    )
    layer = await to_thread.run_sync(store.add, record, toc.kept)
    with suppress(StoreError):  # a clean-up of the cache may have been just in time
        store.progress(layer).add(Field.FETCHED_TOC, toc.fetched)
    return layer


async def fetch_toc(blob: Blob, *, size: int | None, promised: str | None) -> FetchedToc:
    """Fetch the TOC of a layer, verified if a digest is `promised`. Raises as `open_layer` does."""
    tail, size = await blob.tail(_guess(size or 0))
    footer = parse_footer(tail[-LONGEST_FOOTER:], blob_size=size)
    fetched = len(tail)
    start, end = size - len(tail), size - footer.size
    if end - footer.toc_offset > _COMPRESSED_LIMIT:
        raise InvalidToc(f"the table of contents has {end - footer.toc_offset} bytes even compressed")
    if footer.toc_offset < start:
        head = await blob.read(footer.toc_offset, min(start, end))
        fetched += len(head)
        tail = head + tail
        start = footer.toc_offset
    member = tail[footer.toc_offset - start : end - start]
    kept = await to_thread.run_sync(_verified, member, promised)
    return FetchedToc(kept, footer.toc_offset, size, fetched, zstd=tail[-8:] in ZSTD_MAGICS)


def _guess(size: int) -> int:
    """How many bytes at the end of a blob of `size` bytes to ask for, to have its TOC with one request."""
    share = size // _TAIL_SHARE
    return max(_SMALLEST_TAIL, min(2 * share, _SMALL_TAIL), min(share, _LARGEST_TAIL))


def _verified(member: bytes, promised: str | None) -> TocBytes:
    with _unpacking:
        try:
            return verified_toc(unpack_toc(member), promised)
        except FetchError as error:
            refusal = error
    # The frames of its traceback would keep what was unpacked for as long as somebody has the error.
    refusal.__cause__ = refusal.__context__ = None
    raise refusal.with_traceback(None)
