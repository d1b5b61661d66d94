"""Opening a layer: from a blob to a verified table of contents in the store.

One speculative request for the blob's tail brings footer and TOC together; only
a TOC larger than the guess costs a second one.
"""

from __future__ import annotations

from typing import Final

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.errors import InvalidToc, VerificationError
from fetcher.footer import FOOTER_SIZE, parse_footer
from fetcher.progress import Field
from fetcher.store import LayerRecord, LayerStore, Source
from fetcher.toc import TOC_LIMIT, toc_digest, unpack_toc, verify_toc

_SMALLEST_TAIL: Final = 32 << 10
_LARGEST_TAIL: Final = 4 << 20
_TAIL_SHARE: Final = 64
"""The guess: TOCs of real images take 0.7 to 1.2 % of the blob, so ask for its last 64th."""


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
    guess = max(_SMALLEST_TAIL, min(_LARGEST_TAIL, (size or 0) // _TAIL_SHARE))
    tail, size = await blob.tail(guess)
    footer = parse_footer(tail[-FOOTER_SIZE:], blob_size=size)
    fetched = len(tail)
    start = size - len(tail)
    if size - footer.toc_offset > TOC_LIMIT:
        raise InvalidToc(f"the table of contents has {size - footer.toc_offset} bytes even compressed")
    if footer.toc_offset < start:
        head = await blob.read(footer.toc_offset, start)
        fetched += len(head)
        tail = head + tail
        start = footer.toc_offset
    member = tail[footer.toc_offset - start : -footer.size]
    json = await to_thread.run_sync(_verified, member, promised_toc_digest)
    record = LayerRecord(
        digest=digest,
        toc_digest=promised_toc_digest or toc_digest(json),
        size=size,
        toc_offset=footer.toc_offset,
        sources=[source],
        images=[image],
    )
    layer = await to_thread.run_sync(store.add, record, json)
    store.progress(layer).add(Field.FETCHED_TOC, fetched)
    return layer


def _verified(member: bytes, promised: str | None) -> bytes:
    json = unpack_toc(member)
    if promised is not None:
        verify_toc(json, promised)
    if not json:
        raise VerificationError("the table of contents is empty")
    return json
