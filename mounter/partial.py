"""A file that arrives chunk by chunk, and becomes a plain file with the last of them.

Its bytes are kept in an unnamed file in the plain directory. What a chunk's mark says is here was
verified; nothing else may be read. `store`, `PieceWriter.feed` and `close` block and are called from
worker threads, several at a time; everything else belongs to the event loop.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import anyio

from fetcher.errors import FetchError, VerificationError
from fetcher.inflate import MemberInflater, inflate
from fetcher.nodes import Chunk, Node
from fetcher.pieces import mismatch, verified_piece
from fetcher.placing import WHOLE_MEMBER, WHOLE_OUTPUT
from fetcher.plain import PlainFile, PlainLayer


@dataclass(slots=True)
class Arrival:
    """A chunk on its way. `settled` comes with its end: here, or failed with `error`, or no longer wanted."""

    settled: anyio.Event = field(default_factory=anyio.Event)
    error: FetchError | None = None


@dataclass(frozen=True, slots=True)
class MemberPart:
    """A compression member, [offset, end) of the blob, and which chunks of the file come out of it."""

    offset: int
    end: int
    indexes: tuple[int, ...]


class PartialFile:
    """One regular file of a layer, in part here. Close it when nobody uses it any more."""

    __slots__ = (
        "_file",
        "_left",
        "_lock",
        "_plain",
        "arrivals",
        "committed",
        "have",
        "last_used",
        "moved",
        "node",
        "users",
    )

    def __init__(self, plain: PlainLayer, node: Node, now: float) -> None:
        self.node = node
        self.have = bytearray(len(node.chunks))
        self.arrivals: dict[int, Arrival] = {}
        self.committed = False
        self.users = 0
        self.last_used = now
        self.moved = now
        """When a byte of it last came, in monotonic seconds."""
        self._plain = plain
        self._file: PlainFile | None = None
        self._left = len(node.chunks)
        self._lock = threading.Lock()

    @property
    def fd(self) -> int:
        """The descriptor to read chunks from that are here."""
        assert self._file is not None, "no chunk has come yet"
        return self._file.fd

    def has(self, indexes: Iterable[int]) -> bool:
        """Whether all these chunks are here."""
        return all(self.have[index] for index in indexes)

    def missing(self, indexes: Iterable[int]) -> list[int]:
        """Which of these chunks are neither here nor on their way."""
        return [index for index in indexes if not self.have[index] and index not in self.arrivals]

    def missing_bytes(self) -> int:
        """Compressed bytes that have to come before the file is whole."""
        parts = members(self.node, [index for index, here in enumerate(self.have) if not here])
        return sum(part.end - part.offset for part in parts)

    def store(self, member: bytes, indexes: Sequence[int]) -> None:
        """Take chunks out of a whole compressed member. Raises FormatError, VerificationError, StoreError."""
        chunks = [self.node.chunks[index] for index in indexes]
        output = inflate(member, max(chunk.inner_offset + chunk.size for chunk in chunks))
        file = self._opened()
        for index, chunk in zip(indexes, chunks, strict=True):
            file.write(verified_piece(output, self.node, chunk), chunk.file_offset)
            self._took(index)

    def create_empty(self) -> None:
        """Make the plain file of a node without bytes. Raises StoreError."""
        self._opened().commit()
        self.committed = True

    def close(self) -> None:
        """Give up the bytes, unless they have become a plain file."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> PlainFile:
        with self._lock:
            if self._file is None:
                self._file = self._plain.create(self.node)
            return self._file

    def _took(self, index: int) -> None:
        """Mark a chunk that was verified and written; the last one makes the file a plain one."""
        with self._lock:
            if self.have[index]:
                return
            self.have[index] = 1
            self._left -= 1
            if self._left:
                return
        assert self._file is not None
        self._file.commit()
        self.committed = True


class PieceWriter:
    """Takes chunks out of a member that is too large to hold, as it comes.

    Bytes are written before they are verified, where nobody sees them; their mark is set after that.
    """

    __slots__ = ("_digest", "_file", "_inflater", "_partial", "_pending", "_position")

    def __init__(self, partial: PartialFile, indexes: Sequence[int]) -> None:
        chunks = partial.node.chunks
        # A chunk that is here stays as it was verified, whatever another source has for it.
        missing = [index for index in indexes if not partial.have[index]]
        ordered = sorted(missing, key=lambda index: chunks[index].inner_offset)
        self._partial = partial
        self._pending = ordered
        self._inflater = MemberInflater(chunks[ordered[-1]].inner_offset + chunks[ordered[-1]].size)
        self._digest = hashlib.sha256()
        self._position = 0
        self._file: PlainFile | None = None

    @property
    def done(self) -> bool:
        """Whether every chunk is here; the rest of the member is not needed."""
        return not self._pending

    def feed(self, data: bytes) -> None:
        """Take the member's next bytes. Raises FormatError, VerificationError, StoreError."""
        self._file = self._partial._opened()
        for output in self._inflater.feed(data):
            self._cut(memoryview(output))

    def finish(self) -> None:
        """The member has ended. Raises VerificationError if a chunk is not complete."""
        if self._pending:
            chunk = self._partial.node.chunks[self._pending[0]]
            raise VerificationError(
                f"{self._partial.node.path!r}: the layer ends within its bytes at {chunk.file_offset}"
            )

    def _cut(self, output: memoryview) -> None:
        stop = self._position + len(output)
        while self._pending:
            chunk = self._partial.node.chunks[self._pending[0]]
            begin = max(chunk.inner_offset, self._position)
            end = min(chunk.inner_offset + chunk.size, stop)
            if begin < end:
                self._write(output[begin - self._position : end - self._position], chunk, begin)
            if end < chunk.inner_offset + chunk.size:
                break
            if self._digest.digest() != chunk.digest:
                raise mismatch(self._partial.node, chunk)
            self._partial._took(self._pending.pop(0))
            self._digest = hashlib.sha256()
        self._position = stop

    def _write(self, data: memoryview, chunk: Chunk, position: int) -> None:
        assert self._file is not None
        self._digest.update(data)
        self._file.write(data, chunk.file_offset + position - chunk.inner_offset)


def holds_whole(part: MemberPart, node: Node) -> bool:
    """Whether a member is small enough, packed and unpacked, for `PartialFile.store`."""
    output = max(node.chunks[index].inner_offset + node.chunks[index].size for index in part.indexes)
    return part.end - part.offset <= WHOLE_MEMBER and output <= WHOLE_OUTPUT


def members(node: Node, indexes: Iterable[int]) -> list[MemberPart]:
    """The members that these chunks of the file are in, by offset."""
    found: dict[int, list[int]] = {}
    for index in indexes:
        found.setdefault(node.chunks[index].offset, []).append(index)
    return [
        MemberPart(offset, node.chunks[found[offset][0]].end, tuple(found[offset]))
        for offset in sorted(found)
    ]


def runs(parts: Iterable[MemberPart]) -> list[list[MemberPart]]:
    """Members that follow one another in the blob, together: a request each."""
    found: list[list[MemberPart]] = []
    for part in parts:
        if found and found[-1][-1].end == part.offset:
            found[-1].append(part)
        else:
            found.append([part])
    return found
