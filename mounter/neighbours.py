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
from fetcher.placing import Piece, is_small, place
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
        return len(node.chunks) == 1 and self.position <= node.chunks[0].offset < self.end

    def advance(self, position: int) -> None:
        """Members before `position` have come."""
        self.position = position
        self.moved.set()
        self.moved = anyio.Event()


def neighbourhood(
    members: Sequence[Member], start: int, size: int, is_wanted: Callable[[Node], bool]
) -> Coming | None:
    """What to fetch behind byte `start` of the blob, in about `size` compressed bytes; None if nothing.

    `members` are the layer's. What is not wanted is in between, up to 64 KiB, and never at an end.
    """
    first = bisect_left(members, start, key=_offset)
    last = first
    for index in range(first, len(members)):
        member = members[index]
        if member.end - start > size or not is_small(member):
            break
        if any(is_wanted(node) for node, _ in member.pieces):
            last = index + 1
        elif member.end - (members[last - 1].end if last > first else start) > _GAP:
            break
    return Coming(members[first:last], start) if last > first else None


def write(plain: PlainLayer, members: Iterable[tuple[Member, bytes]]) -> int:
    """Write the files of whole compressed members that are not here yet; how many those are.

    Raises VerificationError, StoreError.
    """
    count = 0
    for member, data in members:
        wanted = [
            Piece(node, chunk, None)
            for node, chunk in member.pieces
            if len(node.chunks) == 1 and not plain.has(node)
        ]
        if wanted:
            count += place(plain, member, data, wanted)
    return count
