"""Every chunk and every file of a layer against what its table of contents promises.

One pass over the blob, in its order; memory is flat in the size of layer and files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
from anyio import to_thread

from fetcher.errors import FormatError
from fetcher.inflate import MemberInflater
from fetcher.nodes import Chunk, Member, Node
from snapshotter.inspection.contents import LayerToc, Progress, promised_digests
from snapshotter.inspection.layers import SourceLayer

_GATHERED: Final = 1 << 20
"""Bytes that are checked at a time, so that a thread is worth its while."""


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a file, or with the layer itself where `path` is None."""

    path: str | None
    reason: str


async def verify_layer(
    layer: SourceLayer, toc: LayerToc | None, *, size: int, progress: Progress
) -> list[Fault]:
    """What is wrong with a layer whose blob has `size` bytes; [] if nothing is.

    Of one without a table of contents only the digest is verified. Raises FetchError if the blob cannot be
    read.
    """
    check = _Check(toc)
    async with layer.blob.stream(0, size) as blocks:
        gathered = bytearray()
        async for block in blocks:
            progress(len(block))
            gathered += block
            if len(gathered) >= _GATHERED:
                await to_thread.run_sync(check.feed, bytes(gathered))
                gathered.clear()
        await to_thread.run_sync(check.feed, bytes(gathered))
    faults = check.finish()
    if toc is not None and toc.matches is False:
        faults.insert(
            0, Fault(None, f"the image promises the TOC {layer.toc_digest}, and this is {toc.digest}")
        )
    if layer.digest is not None and check.digest != layer.digest:
        faults.insert(0, Fault(None, f"the blob has the digest {check.digest}"))
    return faults


@dataclass(slots=True)
class _Piece:
    """A chunk that is being read: how many of its bytes came, and their digest."""

    node: Node
    chunk: Chunk
    done: int
    sha256: hashlib._Hash


class _Check:
    """Takes a blob from its beginning to its end."""

    def __init__(self, toc: LayerToc | None) -> None:
        self._members = iter(() if toc is None else toc.tree.members)
        self._promised = {} if toc is None else promised_digests(toc.toc)
        self._blob = hashlib.sha256()
        self._position = 0
        self._member: Member | None = next(self._members, None)
        self._reader: _MemberReader | None = None
        self._files: dict[str, hashlib._Hash] = {}
        self._faults: list[Fault] = []

    @property
    def digest(self) -> str:
        """The digest of what came."""
        return "sha256:" + self._blob.hexdigest()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the blob."""
        self._blob.update(data)
        view = memoryview(data)
        while view and self._member is not None:
            member = self._member
            if self._position < member.offset:
                skipped = min(len(view), member.offset - self._position)
                self._position += skipped
                view = view[skipped:]
                continue
            if self._reader is None:
                self._reader = _MemberReader(member)
            taken = min(len(view), member.end - self._position)
            self._read(self._reader, view[:taken])
            self._position += taken
            view = view[taken:]
            if self._position == member.end:
                self._end_member(self._reader)

    def finish(self) -> list[Fault]:
        """What was wrong, by path."""
        if self._reader is not None:
            self._end_member(self._reader)
        return sorted(self._faults, key=lambda fault: (fault.path or "", fault.reason))

    def _read(self, reader: _MemberReader, data: memoryview) -> None:
        for piece, output in reader.feed(data):
            node, chunk = piece.node, piece.chunk
            piece.sha256.update(output)
            piece.done += len(output)
            if self._promised.get(node.path) and len(node.chunks) > 1:
                self._files.setdefault(node.path, hashlib.sha256()).update(output)
            if piece.done == chunk.size:
                self._end_piece(piece)

    def _end_piece(self, piece: _Piece) -> None:
        node, chunk = piece.node, piece.chunk
        if piece.sha256.digest() != chunk.digest:
            self._wrong(node, f"the {chunk.size} bytes at {chunk.file_offset} are not those of their digest")
        promised = self._promised.get(node.path)
        if not promised or chunk is not node.chunks[-1]:
            return
        whole = self._files.pop(node.path, piece.sha256)
        if "sha256:" + whole.hexdigest() != promised:
            self._wrong(node, "the file is not that of its digest")

    def _end_member(self, reader: _MemberReader) -> None:
        for node, chunk in reader.missing():
            reason = f": {reader.error}" if reader.error else ""
            self._wrong(node, f"the {chunk.size} bytes at {chunk.file_offset} are not there{reason}")
            self._files.pop(node.path, None)
        self._reader = None
        self._member = next(self._members, None)

    def _wrong(self, node: Node, reason: str) -> None:
        self._faults.append(Fault(node.path, reason))


class _MemberReader:
    """Cuts one member's output into the pieces that are in it."""

    def __init__(self, member: Member) -> None:
        last = member.pieces[-1][1]
        self._inflater = MemberInflater(last.inner_offset + last.size)
        self._pieces = list(member.pieces)
        self._number = 0
        self._piece: _Piece | None = None
        self._position = 0
        self.error: str | None = None

    def feed(self, data: memoryview) -> Iterator[tuple[_Piece, memoryview]]:
        """The pieces that the next bytes of the member have something of."""
        if self.error is not None:
            return
        try:
            for output in self._inflater.feed(data):
                yield from self._cut(memoryview(output))
        except FormatError as error:
            self.error = str(error)

    def missing(self) -> list[tuple[Node, Chunk]]:
        """The pieces that did not come whole."""
        return self._pieces[self._number :]

    def _cut(self, output: memoryview) -> Iterator[tuple[_Piece, memoryview]]:
        end = self._position + len(output)
        while self._number < len(self._pieces):
            node, chunk = self._pieces[self._number]
            if self._piece is None:
                self._piece = _Piece(node, chunk, 0, hashlib.sha256())
            start = chunk.inner_offset + self._piece.done
            if start >= end:
                break
            stop = min(end, chunk.inner_offset + chunk.size)
            yield self._piece, output[start - self._position : stop - self._position]
            if stop < chunk.inner_offset + chunk.size:
                break
            self._piece = None
            self._number += 1
        self._position = end
