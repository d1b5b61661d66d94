"""Which entries a layer keeps, and in which order they are written. Pure but for what `read` gives.

What the layer unpacks to stays the same, but for one thing: of several entries of one name only the last is
kept, as an unpacker replaces the earlier ones, and a table of contents knows a name once. A hard link means
the file that stood at its target's name when it was reached; if that one was replaced later, the first link
to it becomes the file.

Global PAX headers are no entries. Unpackers of images pass over them, and so does the table of contents; for
those who heed them they stay in front of what they were in front of: such as stand before the first entry
remain at the very beginning, whatever is moved to the front, and others among the entries that are not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from fetcher.convert.entry import DIRECTORY, GLOBAL, HARD_LINK, SYMLINK, Entry, clean, raw
from fetcher.convert.extents import Extent
from fetcher.convert.rewriting import rewritten, split_header
from fetcher.toc import TOC_NAME
from fetcher.tree import LANDMARK, NO_LANDMARK

_OURS: Final = frozenset({LANDMARK, NO_LANDMARK, TOC_NAME})
"""What is written anew, at the root only."""
_SYMLINK_LIMIT: Final = 40
"""Symlinks on the way to a file; the kernel follows no more either."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The entries in their order, in three parts: the landmark goes behind `first`.

    `leading` are the global headers at the beginning, `first` what is to be prefetched, `missing` the
    prioritized paths that the layer does not have.
    """

    leading: list[Entry]
    first: list[Entry]
    rest: list[Entry]
    missing: tuple[str, ...]


def arrange(
    source: Iterable[Entry], prioritized: Sequence[str], *, read: Callable[[Extent], bytes]
) -> Arrangement:
    """Choose and order a layer's entries; `read` gives the bytes of a header."""
    entries = [entry for entry in source if entry.path not in _OURS or entry.kind == GLOBAL]
    begin = next((i for i, entry in enumerate(entries) if entry.kind != GLOBAL), len(entries))
    leading = entries[:begin]
    entries = _last_of_each_name(entries[begin:], read)
    order = _Order(entries)
    missing = tuple(path for path in prioritized if not order.put_path(path))
    first = order.taken
    order.taken = []
    for entry in entries:
        order.put(entry, with_parents=False)
    return Arrangement(leading, first, order.taken, missing)


def _last_of_each_name(entries: list[Entry], read: Callable[[Extent], bytes]) -> list[Entry]:
    """The entries that last, hard links to what does not last made right."""
    lasting = _lasting(entries)
    if len(lasting) == len(entries):
        return entries
    by_start = {entry.start: entry for entry in entries}
    kept = {entry.start for entry in lasting}
    targets = _targets(entries)
    becomes: dict[int, Entry] = {}
    changed: dict[int, Entry] = {}
    for entry in lasting:
        if entry.kind != HARD_LINK or (target := targets.get(entry.start)) is None or target in kept:
            continue
        file = _end_of_links(target, targets)
        known = by_start[file] if file in kept else becomes.get(file)
        if known is not None:
            parts = split_header(read(entry.header))
            changed[entry.start] = replace(
                entry, link=known.name, header=rewritten(parts, link=raw(known.name))
            )
        elif by_start[file].kind not in (HARD_LINK, DIRECTORY):
            replaced = by_start[file]
            header = rewritten(split_header(read(replaced.header)), name=raw(entry.name))
            becomes[file] = changed[entry.start] = replace(
                replaced, name=entry.name, path=entry.path, start=entry.start, header=header
            )
    return [changed.get(entry.start, entry) for entry in lasting]


def _lasting(entries: list[Entry]) -> list[Entry]:
    """Those entries that nothing behind them replaces: no entry of their name, no file above them."""
    others = {entry.path for entry in entries if entry.kind not in (DIRECTORY, GLOBAL)}
    below: dict[str, bool] = {"": False}
    lasting = []
    seen: set[str] = set()
    replaced: set[str] = set()
    for entry in reversed(entries):
        path = entry.path
        if entry.kind != GLOBAL:
            gone = path in seen or (
                _is_below(path, others, below) and any(parent in replaced for parent in _parents(path))
            )
            if entry.kind != DIRECTORY:
                # Also if it does not last itself: what was in a directory of its name is gone all the same.
                replaced.add(path)
            if gone:
                continue
            seen.add(path)
        lasting.append(entry)
    lasting.reverse()
    return lasting


def _is_below(path: str, others: set[str], known: dict[str, bool]) -> bool:
    """Whether any parent of `path` is in `others`; `known` remembers the answer for each directory."""
    directory = path.rpartition("/")[0]
    if directory not in known:
        known[directory] = directory in others or any(parent in others for parent in _parents(directory))
    return known[directory]


def _parents(path: str) -> Iterator[str]:
    """The directories above `path`, the nearest first, without the root."""
    while path := path.rpartition("/")[0]:
        yield path


def _targets(entries: list[Entry]) -> dict[int, int]:
    """For each hard link's `start` that of the entry it links to.

    That is the last one of the name in front of the link; if there is none, the last one of all. Links to
    nothing are left out.
    """
    last = {entry.path: entry.start for entry in entries if entry.kind != GLOBAL}
    current: dict[str, int] = {}
    targets: dict[int, int] = {}
    for entry in entries:
        if entry.kind == GLOBAL:
            continue
        if entry.kind == HARD_LINK:
            path = clean(entry.link)
            target = current.get(path, last.get(path))
            if target is not None and target != entry.start:
                targets[entry.start] = target
        current[entry.path] = entry.start
    return targets


def _end_of_links(start: int, targets: dict[int, int]) -> int:
    """Where the chain of hard links from the entry at `start` ends; any of them, if they form a ring."""
    passed = set()
    while start in targets and start not in passed:
        passed.add(start)
        start = targets[start]
    return start


class _Order:
    """Takes entries one after the other, each once, with what must stand in front of it."""

    def __init__(self, entries: list[Entry]) -> None:
        self._entries = {entry.path: entry for entry in entries if entry.kind != GLOBAL}
        self._done: set[int] = set()
        self._directories: set[str] | None = None
        self.taken: list[Entry] = []

    def put(self, entry: Entry, *, with_parents: bool) -> None:
        """Take an entry unless that is done; in front of it its directories, and a hard link's target."""
        chain: list[Entry] = []
        link: Entry | None = entry
        while link is not None and link.start not in self._done:
            self._done.add(link.start)
            chain.append(link)
            link = self._entries.get(clean(link.link)) if link.kind == HARD_LINK else None
        while chain:
            each = chain.pop()
            if with_parents or each is not entry:
                for parent in reversed([*_parents(each.path), ""]):
                    above = self._entries.get(parent)
                    if above is None or above.kind not in (DIRECTORY, SYMLINK):
                        continue
                    if above.start not in self._done:
                        self._done.add(above.start)
                        self.taken.append(above)
            self.taken.append(each)

    def put_path(self, path: str) -> bool:
        """Take what is at `path`, and what a symlink there leads to; False if the layer has nothing there."""
        entry = self._entries.get(clean(path))
        if entry is not None:
            self.put(entry, with_parents=True)
        reached = self._follow(path)
        return entry is not None or reached or self._is_directory(clean(path))

    def _follow(self, path: str) -> bool:
        """Take what the kernel would reach by `path`, and symlinks on the way; False if it is not here."""
        at: list[str] = []
        pending = [part for part in reversed(path.split("/")) if part]
        links = 0
        entry = self._entries.get("")
        while pending:
            part = pending.pop()
            if part == ".":
                continue
            if part == "..":
                del at[-1:]
                continue
            at.append(part)
            entry = self._entries.get("/".join(at))
            if entry is None or entry.kind != SYMLINK:
                continue
            self.put(entry, with_parents=True)
            links += 1
            if links > _SYMLINK_LIMIT:
                return False
            at = [] if entry.link.startswith("/") else at[:-1]
            pending += [part for part in reversed(entry.link.split("/")) if part]
        entry = self._entries.get("/".join(at))
        if entry is not None:
            self.put(entry, with_parents=True)
        return entry is not None

    def _is_directory(self, path: str) -> bool:
        """Whether something in the layer lies below `path`."""
        if self._directories is None:
            self._directories = {parent for each in self._entries for parent in _parents(each)}
        return path in self._directories
