"""Streaming a span of a layer into its plain directory.

One sequential read a span: compressed blocks in, members inflated, pieces
verified, files linked in. Large members may be inflated and written in threads,
which a single large file needs to come as fast as the link brings it, small ones
by another process. Meant for a process of its own (the work between two reads is
CPU-bound and blocks the loop); safe beside on-demand fetches of the same layer,
since the first writer of a file wins.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from fetcher.errors import FormatError, VerificationError
from fetcher.inflate import MemberInflater
from fetcher.nodes import Chunk, Member, Node
from fetcher.pieces import mismatch
from fetcher.placing import Piece, Writing, Writings, damage, is_small, place, wanted_output
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.span_reader import SpanReader

if TYPE_CHECKING:  # what streams need not be a registry: do not load its client here
    from fetcher.blob import Blob

_GAP: Final = 1 << 20
"""Bytes that are here already are fetched again rather than cost a request, up to this many."""
_WORTH_LEAVING: Final = 4 << 20
"""Bytes ahead that others have brought meanwhile, from which on a request is given up: with it go its
connection and what is under way on that."""
_LONG_PAUSE_SECONDS: Final = 0.02
"""After which others may have brought something."""
_RATE_SECONDS: Final = 0.2
_LARGE: Final = 1 << 20
"""Bytes of output that are worth being handed to a thread."""
_MOST_WAITING: Final = 2
"""Members that wait for a thread, so that none is idle while the next one comes."""

Pause = Callable[[int], Awaitable[None]]
"""Called with the size of each block that came; may wait, to yield or to keep to a rate."""


@dataclass(frozen=True, slots=True)
class Span:
    """[start, end) of the blob and the members that lie in it."""

    start: int
    end: int
    members: Sequence[Member]


def missing_spans(plain: PlainLayer, start: int, end: int) -> list[Span]:
    """What has to be read for the files that are not here yet and have their last piece in [start, end)."""
    known: dict[int, bool] = {}

    def is_missing(node: Node) -> bool:
        if not start <= node.chunks[-1].offset < end:
            return False
        if len(node.chunks) == 1:
            return not plain.has(node)
        if id(node) not in known:
            known[id(node)] = not plain.has(node)
        return known[id(node)]

    spans: list[Span] = []
    current: list[Member] = []
    for member in plain.tree.members:
        if member.offset >= end:
            break
        if not any(is_missing(node) for node, _ in member.pieces):
            continue
        if current and member.offset - current[-1].end > _GAP:
            spans.append(Span(current[0].offset, current[-1].end, current))
            current = []
        current.append(member)
    if current:
        spans.append(Span(current[0].offset, current[-1].end, current))
    return spans


class Placing(Protocol):
    """What is placed elsewhere; Futures are."""

    def done(self) -> bool:
        """Whether it is over."""

    def result(self) -> int:
        """Wait until it is; how many files are new with it. Raises FetchError."""


class Batch(Placing, Protocol):
    """Neighbours that another process places."""

    def add(self, member: Member, data: bytes | memoryview) -> bool:
        """Take the bytes of a member that the placer gave this batch for; whether it is the first."""


class Placer(Protocol):
    """A process that places members."""

    def batch(self, member: Member) -> Batch | None:
        """Where to add `member`; None if it is better placed here."""

    def flush(self) -> None:
        """Have it place what was added, though it could take more."""

    def drop(self) -> None:
        """Forget all batches, when none of them is being placed any more."""


class _UnderWay(NamedTuple):
    """A member that has come; `placing` is None if it is placed, or with the one before it."""

    member: Member
    pieces: Sequence[Piece]
    placing: Placing | None


class LayerStream:
    """Writes spans of one layer; one at a time. Members of 1 MiB and more in up to `threads` threads.

    What `placer` takes while this process cannot keep up with what comes, it places.
    """

    def __init__(
        self,
        blob: Blob,
        plain: PlainLayer,
        progress: Progress,
        *,
        counter: Field,
        pause: Pause,
        threads: int = 0,
        placer: Placer | None = None,
    ) -> None:
        self._blob = blob
        self._plain = plain
        self._progress = progress
        self._counter = counter
        self._pause = pause
        self._count = threads
        self._threads: ThreadPoolExecutor | None = None
        self._placer = placer
        self._most_placing = threads + (_MOST_WAITING if placer is None else 2 * _MOST_WAITING)
        self._under_way: deque[_UnderWay] = deque()
        self._placing = 0
        """How many of these are placed elsewhere, or wait for it."""
        self._writings = Writings(plain, lambda node: node.chunks[-1].offset < self._end)
        self._end = 0
        self._measured = 0
        self._since = time.monotonic()
        self._paused = False

    async def run(self, start: int, end: int) -> None:
        """Bring every file here that has its last piece in [start, end), wherever it begins.

        Raises FetchError, VerificationError above all; what is here by then stays.
        """
        spans = missing_spans(self._plain, start, end)
        self._end = end
        self._threads = ThreadPoolExecutor(self._count) if self._count else None
        try:
            for span in spans:
                await self._pause(0)
                members = self._from_first_missing(span.members)
                while members:
                    members = self._from_first_missing(await self._read(members))
        finally:
            self._progress[Field.STOP] = 0
            if self._threads is not None:
                self._threads.shutdown(cancel_futures=True)
            if self._placer is not None:
                self._placer.drop()
            self._under_way.clear()
            self._placing = 0
            self._writings.close()

    async def _read(self, members: Sequence[Member]) -> Sequence[Member]:
        """Bring members by one request; gives the rest if others have brought the next of them meanwhile."""
        start, end = members[0].offset, members[-1].end
        rest: Sequence[Member] = ()
        self._progress[Field.POSITION] = start
        self._progress[Field.STOP] = end
        async with self._blob.stream(start, end) as blocks:
            reader = SpanReader(blocks, start, self._arrived)
            for index, member in enumerate(members):
                if self._paused:
                    self._paused = False
                    if self._is_worth_leaving(members, index):
                        rest = members[index:]
                        break
                await reader.skip_to(member.offset)
                try:
                    await self._member(member, reader)
                except FormatError as error:
                    raise damage(member, error) from error
                self._settle(self._most_placing)
            self._settle(0)
        return rest

    def _from_first_missing(self, members: Sequence[Member]) -> Sequence[Member]:
        """What is left of members that come next, without those at the beginning that are here by now."""
        for index, member in enumerate(members):
            if self._is_missing(member):
                return members[index:]
            self._progress.add(Field.BYTES_DONE, member.end - member.offset)
        return ()

    def _is_worth_leaving(self, members: Sequence[Member], index: int) -> bool:
        end = members[index].offset + _WORTH_LEAVING
        while index < len(members) and not self._is_missing(members[index]):
            if members[index].end > end:
                return True
            index += 1
        return False

    def _is_missing(self, member: Member) -> bool:
        return not all(self._plain.has(node) for node, _ in member.pieces)

    async def _member(self, member: Member, reader: SpanReader) -> None:
        wanted = wanted_output(member)
        if not is_small(member):
            await self._stream_member(member, wanted, reader)
            self._under_way.append(_UnderWay(member, (), None))
            return
        batch = self._batch(member, reader)
        data = await reader.take(member.end - member.offset)
        if batch is not None:
            begins = batch.add(member, data)
            self._placing += begins
            self._under_way.append(_UnderWay(member, (), batch if begins else None))
            return
        pieces = self._wanted(member)
        if self._threads is not None and wanted >= _LARGE:
            self._placing += 1
            placing = self._threads.submit(place, self._plain, member, data, pieces)
            self._under_way.append(_UnderWay(member, pieces, placing))
        else:
            self._written(place(self._plain, member, data, pieces))
            self._under_way.append(_UnderWay(member, pieces, None))

    def _batch(self, member: Member, reader: SpanReader) -> Batch | None:
        if self._placer is None:
            return None
        if reader.keeps_up():
            self._placer.flush()
            return None
        return self._placer.batch(member)

    def _settle(self, most: int) -> None:
        """Finish what is over, in the blob's order, and wait until no more than `most` are placed elsewhere.

        Blocks: the loop has nothing else to do that could not wait for a member. Raises FetchError.
        """
        while self._under_way:
            first = self._under_way[0]
            if first.placing is not None:
                if self._placing <= most and not first.placing.done():
                    return
                self._written(first.placing.result())
                self._placing -= 1
            self._under_way.popleft()
            for piece in first.pieces:
                if piece.writing is not None:
                    self._took(piece.writing, piece.chunk)
            self._progress[Field.POSITION] = first.member.end
            self._progress.add(Field.BYTES_DONE, first.member.end - first.member.offset)

    def _wanted(self, member: Member) -> list[Piece]:
        # Of one file alone it is known to be missing, or was when the span began: its writer looks again.
        shared = len(member.pieces) > 1
        found = [self._writings.piece(node, chunk, may_be_here=shared) for node, chunk in member.pieces]
        return [piece for piece in found if piece is not None]

    async def _arrived(self, count: int) -> None:
        self._progress.add(self._counter, count)
        self._measured += count
        now = time.monotonic()
        if now - self._since >= _RATE_SECONDS:
            self._progress[Field.RATE] = int(self._measured / (now - self._since))
            self._measured, self._since = 0, now
        await self._pause(count)
        self._paused = self._paused or time.monotonic() - now > _LONG_PAUSE_SECONDS

    def _took(self, writing: Writing, chunk: Chunk) -> None:
        """`chunk` was verified and written; with the last one the file is here."""
        self._written(self._writings.took(writing, chunk))

    def _written(self, new: int) -> None:
        if new:
            self._progress.add(Field.FILES_DONE, new)

    async def _stream_member(self, member: Member, wanted: int, reader: SpanReader) -> None:
        """Inflate a member as it arrives, keeping nothing of it but the slice at hand."""
        inflater = MemberInflater(wanted)
        sink = _PieceSink(self, iter(member.pieces))
        async with contextlib.aclosing(reader.blocks(member.end - member.offset)) as blocks:
            async for block in blocks:
                for output in inflater.feed(block):
                    sink.feed(output)
        sink.finish()


class _PieceSink:
    """Cuts a large member's output into its pieces; a file is committed only when each piece verified."""

    def __init__(self, stream: LayerStream, pieces: Iterator[tuple[Node, Chunk]]) -> None:
        self._stream = stream
        self._pieces = pieces
        self._position = 0
        self._begin()

    def _begin(self) -> None:
        self._current = next(self._pieces, None)
        self._digest = hashlib.sha256()
        self._writing: Writing | None = None
        if self._current is not None:
            self._writing = self._stream._writings.of(*self._current)

    def feed(self, output: bytes) -> None:
        view = memoryview(output)
        while self._current is not None:
            node, chunk = self._current
            begin = max(chunk.inner_offset, self._position)
            stop = min(chunk.inner_offset + chunk.size, self._position + len(output))
            if begin < stop:
                data = view[begin - self._position : stop - self._position]
                self._digest.update(data)
                if self._writing is not None:
                    self._writing.file.write(data, chunk.file_offset + begin - chunk.inner_offset)
            if stop < chunk.inner_offset + chunk.size:
                break
            if self._digest.digest() != chunk.digest:
                raise mismatch(node, chunk)
            if self._writing is not None:
                self._stream._took(self._writing, chunk)
            self._begin()
        self._position += len(output)

    def finish(self) -> None:
        if self._current is not None:
            node, chunk = self._current
            raise VerificationError(f"{node.path!r}: the layer ends within its bytes at {chunk.file_offset}")
