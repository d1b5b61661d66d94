"""A second process for a large layer: it places small members of what the worker receives.

Writing a file costs more processor time than fetching it, so one process streams slower than a fast link, and
threads would wait for each other. The worker hands over batches of neighbours and works on the next ones
itself, so both write what lies close together in the layer, and it comes to lie close together on the disk.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Final

from fetcher.errors import FetchError
from fetcher.logs import get_logger
from fetcher.nodes import Member
from fetcher.placing import WHOLE_OUTPUT, has_whole_files, place_whole_files, wanted_output
from fetcher.plain import PlainLayer
from mounter.forks import Child, set_title

log = get_logger("layergate.worker")

_LEAST_COST: Final = 24 << 20
"""A quarter of a second of work; below that it is not worth the memory."""
_SECONDS_A_BYTE: Final = 10e-9
"""To inflate, verify and write a compressed one."""
_FILE_COST: Final = 6 << 10
"""Compressed bytes that take as long as making one file does."""
_BATCH_COST: Final = 512 << 10
"""5 ms of work."""
_SLOTS: Final = 2
"""Batches under way, so that the process never waits for the next one."""
_SLOT_SIZE: Final = _BATCH_COST
_ORDER: Final = struct.Struct("<BQQ")
"""A slot, and which bytes of the blob it holds."""
_ANSWER: Final = struct.Struct("<i")
"""How many files are new; _FAILED if not all could be placed."""
_FAILED: Final = -1


def is_worth_two(members: Sequence[Member], link_rate: float) -> bool:
    """Whether to have a second process for what is missing. Pure, but for the number of processors.

    One process alone keeps up with a link that takes twice as long for it; `link_rate` is in bytes a second,
    infinite if nothing is known.
    """
    cost = sum(map(_cost, members))
    on_the_link = sum(member.end - member.offset for member in members) / link_rate
    return cost >= max(_LEAST_COST, on_the_link / (2 * _SECONDS_A_BYTE)) and (os.cpu_count() or 1) > 1


class _Batch:
    """Members that lie one behind another in the blob, in a slot of the memory that both processes see."""

    def __init__(self, placer: ProcessPlacer, slot: int, start: int) -> None:
        self._placer = placer
        self._cost = 0
        self.slot = slot
        self.start = self.end = start
        self.members: list[Member] = []
        self.new: int | None = None
        self.failed = False

    def has_room_for(self, member: Member) -> bool:
        return (
            member.offset == self.end
            and member.end - self.start <= _SLOT_SIZE
            and self._cost < _BATCH_COST
            and _is_suited(member)
        )

    def add(self, member: Member, data: bytes | memoryview) -> bool:
        self._placer.memory(self.slot)[self.end - self.start : member.end - self.start] = data
        self.members.append(member)
        self._cost += _cost(member)
        self.end = member.end
        return len(self.members) == 1

    def done(self) -> bool:
        self._placer.hear(wait=False)
        return self.failed or self.new is not None

    def result(self) -> int:
        while self.new is None:
            if self.failed:
                self.new = self._placer.place_here(self)
            else:
                self._placer.flush()
                self._placer.hear(wait=True)
        return self.new


class ProcessPlacer:
    """A `fetcher.stream.Placer`: a process forked off this one, which has the tree. Close it in any case.

    Whatever it fails with, this process then places itself, and meets the same if it has not passed by then.
    """

    def __init__(self, layer: str, plain: PlainLayer) -> None:
        """Fork; while no event loop and no thread is here. Raises OSError."""
        self._plain = plain
        self._memory = memoryview(mmap.mmap(-1, _SLOTS * _SLOT_SIZE))
        self._free = list(range(_SLOTS))
        self._gathering: _Batch | None = None
        self._sent: deque[_Batch] = deque()
        self._pipe, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._alive = True
        with theirs:
            self._child = Child(partial(_place_in_child, layer, plain, self._memory, theirs, self._pipe))

    @property
    def pid(self) -> int:
        """The process."""
        return self._child.pid

    def batch(self, member: Member) -> _Batch | None:
        """Where to add `member`; None if it is too large, or both slots are taken."""
        if self._gathering is not None:
            if self._gathering.has_room_for(member):
                return self._gathering
            self.flush()
        if not (self._alive and self._free and _is_suited(member)):
            return None
        self._gathering = _Batch(self, self._free.pop(), member.offset)
        return self._gathering

    def flush(self) -> None:
        """Have the process place what was added, though the batch could take more."""
        batch, self._gathering = self._gathering, None
        if batch is None:
            return
        self._sent.append(batch)
        try:
            self._pipe.send(_ORDER.pack(batch.slot, batch.start, batch.end))
        except OSError as error:
            self._mourn(error)

    def drop(self) -> None:
        """Forget all batches, when none of them is being placed any more."""
        self.flush()
        while self._sent:
            self.hear(wait=True)
        self._free = list(range(_SLOTS))

    def memory(self, slot: int) -> memoryview:
        """The bytes of a slot."""
        return self._memory[slot * _SLOT_SIZE : (slot + 1) * _SLOT_SIZE]

    def hear(self, *, wait: bool) -> None:
        """Take the answers that are there; with `wait`, at least one."""
        while self._sent:
            try:
                answer = self._pipe.recv(_ANSWER.size, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                self._mourn(error)
                return
            if not answer:
                self._mourn(None)
                return
            wait = False
            batch = self._sent.popleft()
            (new,) = _ANSWER.unpack(answer)
            if new == _FAILED:
                batch.failed = True
            else:
                batch.new = new
                self._free.append(batch.slot)

    def place_here(self, batch: _Batch) -> int:
        """Place a batch that the other process could not. Raises FetchError."""
        data = self.memory(batch.slot)[: batch.end - batch.start]
        new = place_whole_files(self._plain, batch.members, data)
        self._free.append(batch.slot)
        return new

    def _mourn(self, error: OSError | None) -> None:
        log.warning("placer_ended", error=str(error or "it was ended"))
        self._alive = False
        for batch in self._sent:
            batch.failed = True
        self._sent.clear()

    def close(self) -> None:
        """End it, at once."""
        self._pipe.close()
        self._child.close()


def _cost(member: Member) -> int:
    return member.end - member.offset + _FILE_COST * len(member.pieces)


def _is_suited(member: Member) -> bool:
    size = member.end - member.offset
    return size <= _SLOT_SIZE and wanted_output(member) <= WHOLE_OUTPUT and has_whole_files(member)


def _place_in_child(
    layer: str, plain: PlainLayer, memory: memoryview, pipe: socket.socket, parents: socket.socket
) -> int:
    parents.close()
    set_title(f"worker {layer}, placer")
    members = plain.tree.members
    offset = attrgetter("offset")
    while order := pipe.recv(_ORDER.size):
        slot, start, end = _ORDER.unpack(order)
        batch = members[bisect_left(members, start, key=offset) : bisect_left(members, end, key=offset)]
        begin = slot * _SLOT_SIZE
        pipe.send(_ANSWER.pack(_placed(plain, batch, memory[begin : begin + end - start])))
    return 0


def _placed(plain: PlainLayer, batch: Sequence[Member], data: memoryview) -> int:
    try:
        return place_whole_files(plain, batch, data)
    except (FetchError, OSError) as error:
        log.info("placer_failed", error=str(error))
    except Exception:
        log.exception("placer_failed")
    return _FAILED
