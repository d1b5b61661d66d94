"""The table of contents that is written: entries out of tar entries, and their JSON. Pure; no I/O."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import Final

import msgspec

from fetcher.convert.entry import HARD_LINK, REGULAR, SYMLINK, Entry
from fetcher.toc import TocEntry

_EARLIEST: Final = int(datetime(1, 1, 1, tzinfo=UTC).timestamp())
_LATEST: Final = int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp())


class WrittenEntry(TocEntry, omit_defaults=True):
    """A TOC entry to be written; what is zero or empty is left out, as stargz-snapshotter does."""

    user_name: str = ""
    group_name: str = ""


class _Document(msgspec.Struct):
    version: int
    entries: list[WrittenEntry]


class Contents:
    """The table of contents being made: entries in the blob's order."""

    def __init__(self) -> None:
        self.entries: list[WrittenEntry] = []
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, entry: Entry) -> WrittenEntry:
        """List an entry; where its content is, and its digests, are filled in later."""
        written = WrittenEntry(
            name=entry.name,
            type=entry.kind,
            size=entry.size if entry.kind == REGULAR else 0,
            modtime=_time(entry.mtime),
            link_name=entry.link if entry.kind in (SYMLINK, HARD_LINK) else "",
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            dev_major=entry.major,
            dev_minor=entry.minor,
            xattrs=entry.xattrs,
            user_name=_if_changed(self._users, entry.uid, entry.user),
            group_name=_if_changed(self._groups, entry.gid, entry.group),
        )
        self.entries.append(written)
        return written

    def add_chunk(self, file: WrittenEntry, offset: int) -> WrittenEntry:
        """List a further chunk of a file, `offset` bytes into it."""
        chunk = WrittenEntry(name=file.name, type="chunk", chunk_offset=offset)
        self.entries.append(chunk)
        return chunk

    def to_json(self) -> bytes:
        """The document. Bytes of a name that are no UTF-8 become lone surrogates, \\udc80 to \\udcff."""
        document = _Document(1, self.entries)
        try:
            return msgspec.json.encode(document)
        except UnicodeEncodeError:
            # JSON has no other way to say such a name. Go reads a lone surrogate as U+FFFD, which is what
            # stargz-snapshotter's own converter writes in place of a byte that is no UTF-8.
            return json.dumps(msgspec.to_builtins(document), separators=(",", ":")).encode()


def _if_changed(known: dict[int, str], number: int, name: str) -> str:
    """`name` where it is not the one said last for this number: it is written on change only."""
    if not name or known.get(number) == name:
        return ""
    known[number] = name
    return name


@functools.lru_cache(maxsize=4096)
def _time(seconds: int) -> str:
    """RFC 3339 in UTC, "" for the epoch; what is beyond its years is moved to the nearest time it can say."""
    if not seconds:
        return ""
    within = min(max(seconds, _EARLIEST), _LATEST)
    return datetime.fromtimestamp(within, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")
