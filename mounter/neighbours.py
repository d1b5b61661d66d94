"""Files that lie behind one that was missed: fetched in the same request, as they may be missed next.

A layer has the files of a directory, and of a package, side by side. While a container is at work with the
file that it got, the link has nothing else to do than to bring what follows, and each file that has come this
way saves a request. `Coming` belongs to the event loop; `write` blocks, in a worker thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

import anyio

from fetcher.nodes import Member, Node
from fetcher.placing import Writings, is_small, place
from fetcher.plain import PlainLayer

_GAP: Final = 64 << 10
"""What is here already ends a neighbourhood if it is larger than this."""
_offset = attrgetter("offset")


@dataclass(slots=True)
class Coming:
    """A neighbourhood on its way: members in [start, end) of the blob; those before `position` have come."""

    members: Sequence[Member]
    position: int
    moved: anyio.Event = field(default_factory=anyio.Event)

    @property
    def start(self) -> int:
        """Where it begins."""
        return self.members[0].offset

    @property
    def end(self) -> int:
        """Where it ends; `position` gets there in any case, also when the rest of it does not come."""
        return self.members[-1].end

    def brings(self, node: Node) -> bool:
        """Whether the file is among what has not come yet."""
        return self.position < node.chunks[-1].end and self.holds(node)

    def advance(self, position: int) -> None:
        """Members before `position` have come."""
        self.position = position
        self.moved.set()
        self.moved = anyio.Event()

    def holds(self, node: Node) -> bool:
        """Whether all of the file lies in it."""
        return _lies_within(node, self.start, self.end)


def neighbourhood(
    members: Sequence[Member], start: int, size: int, is_wanted: Callable[[Node], bool]
) -> Coming | None:
    """What to fetch behind byte `start` of the blob, in about `size` compressed bytes; None if nothing.

    `members` are the layer's. What is not wanted is in between, up to 64 KiB, and never at an end; a file is
    wanted if all of it is near.
    """
    first = bisect_left(members, start, key=_offset)
    last = reached = first
    for index in range(first, len(members)):
        member = members[index]
        if member.end - start > size or not is_small(member):
            break
        wanted = [
            node for node, _ in member.pieces if _lies_within(node, start, start + size) and is_wanted(node)
        ]
        if wanted:
            reached = index + 1
            if all(node.chunks[-1].end == member.end for node in wanted):
                last = reached
        elif member.end - (members[reached - 1].end if reached > first else start) > _GAP:
            break
    return Coming(members[first:last], start) if last > first else None


def write(plain: PlainLayer, writings: Writings, members: Iterable[tuple[Member, bytes]]) -> int:
    """Write the files of whole compressed members that are not here yet; how many those are.

    `writings` has what the members before have begun. Raises VerificationError, StoreError.
    """
    count = 0
    for member, data in members:
        found = [writings.piece(node, chunk, may_be_here=True) for node, chunk in member.pieces]
        pieces = [piece for piece in found if piece is not None]
        if pieces:
            count += place(plain, member, data, pieces)
            count += sum(writings.took(piece.writing, piece.chunk) for piece in pieces if piece.writing)
    return count


def _lies_within(node: Node, start: int, end: int) -> bool:
    return start <= node.chunks[0].offset and node.chunks[-1].end <= end
