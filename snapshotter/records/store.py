"""ROOT/records: records of images by what containers did on this node. Blocking.

    ROOT/records/<chain>.jsonl          what the first container of an image opened; <chain> are the hex
                                        digits of the image's chain ID
                 waits/<layer>.jsonl    what containers had to wait for, by layer key (mounter.waits)

A record of an image is written whole, by temporary name and rename. There are at most RECORDS_LIMIT of each
kind, of at most SIZE_LIMIT bytes together; the oldest go.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from fetcher.errors import FormatError, InvalidReference, SourceNotFound, StoreError
from fetcher.logs import get_logger
from fetcher.record import SIZE_LIMIT as READ_LIMIT
from fetcher.record import (
    VERSION,
    Header,
    OpenedFile,
    Record,
    extend_record,
    format_record,
    merge_records,
    parse_record,
)
from fetcher.reference import parse_digest, parse_reference
from mounter.waits import waits_directory

log = get_logger("layergate.records")

RECORDS_LIMIT: Final = 500
SIZE_LIMIT: Final = 64 << 20
_NAME: Final = re.compile(r"[0-9a-z]{20}\.jsonl|[0-9a-f]{64}\.jsonl")


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of ours; `size` in bytes, `written` in seconds since 1970. `waits`: not opens, but waits."""

    path: str
    size: int
    written: float
    waits: bool
    record: Record

    @property
    def names(self) -> list[str]:
        """The images that it is of, as far as they are known."""
        header = self.record.header
        return list(dict.fromkeys(name for name in (header.image, *header.images) if name))


class RecordStore:
    """The records below one root."""

    def __init__(self, root: str) -> None:
        self._directory = os.path.join(os.path.abspath(root), "records")
        self._waits = waits_directory(os.path.abspath(root))

    def has(self, chain: str) -> bool:
        """Whether there is a record of the image with this chain ID."""
        return os.path.exists(self._path(chain))

    def keep(self, record: Record) -> str:
        """Write the record of the image that its header's chain ID names; its path. Raises StoreError."""
        path = self._path(record.header.chain)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make {self._directory}: {error.strerror}", errno=error.errno or 0
            ) from error
        write_record(path, record)
        return path

    def all(self) -> list[Kept]:
        """Every record that can be read, the newest first."""
        found = [*self._read(self._directory, waits=False), *self._read(self._waits, waits=True)]
        return sorted(found, key=lambda kept: kept.written, reverse=True)

    def matching(self, name: str) -> list[Kept]:
        """The records of an image: by reference, in any form, by chain ID or layer key, or its beginning."""
        return [kept for kept in self.all() if _matches(kept, name)]

    def clear(self, records: Iterable[Kept]) -> None:
        """Remove records. Raises StoreError."""
        for kept in records:
            try:
                with suppress(FileNotFoundError):
                    os.unlink(kept.path)
            except OSError as error:
                raise StoreError(
                    f"cannot remove {kept.path}: {error.strerror}", errno=error.errno or 0
                ) from error

    def trim(self, *, records: int = RECORDS_LIMIT, size: int = SIZE_LIMIT) -> None:
        """Keep to so many records, and bytes, of each kind: the oldest go, and what a crash left.

        Raises OSError.
        """
        for directory in (self._directory, self._waits):
            files = []
            with suppress(FileNotFoundError):
                for entry in os.scandir(directory):
                    if _NAME.fullmatch(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime, status.st_size, entry.path))
                    elif ".jsonl." in entry.name:
                        os.unlink(entry.path)
            room = size
            for number, (_, taken, path) in enumerate(sorted(files, reverse=True)):
                room -= taken
                if number >= records or room < 0:
                    os.unlink(path)

    def _path(self, chain: str) -> str:
        return os.path.join(self._directory, f"{parse_digest(chain).removeprefix('sha256:')}.jsonl")

    def _read(self, directory: str, *, waits: bool) -> list[Kept]:
        found = []
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(directory)):
                if not _NAME.fullmatch(name):
                    continue
                path = os.path.join(directory, name)
                try:
                    with open(path, "rb") as file:
                        status = os.fstat(file.fileno())
                        record = parse_record(file.read(), name=path)
                except FileNotFoundError:
                    continue
                except (FormatError, OSError) as error:
                    log.warning("record_not_read", path=path, error=str(error))
                    continue
                found.append(Kept(path, status.st_size, status.st_mtime, waits, record))
        return found


def write_record(path: str, record: Record) -> None:
    """Write a record so that it is there whole, or as it was. Raises StoreError."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(format_record(record))
            os.rename(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}", errno=error.errno or 0) from error


def read_record(path: str) -> Record:
    """The record in a file. Raises SourceNotFound, FormatError, StoreError."""
    try:
        with open(path, "rb") as file:
            return parse_record(file.read(READ_LIMIT + 1), name=path)
    except FileNotFoundError:
        raise SourceNotFound(f"there is no file {path}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error


def combined(records: Sequence[Kept]) -> Record:
    """One record of all that is known: what was opened, and behind it what else was waited for.

    Raises ValueError for no records.
    """
    opens = [kept.record for kept in records if not kept.waits]
    waits = [kept.record for kept in records if kept.waits]
    if not waits:
        return merge_records(opens)
    waited = by_time(waits)
    return extend_record(merge_records(opens), waited) if opens else waited


def by_time(records: Sequence[Record]) -> Record:
    """Records of several layers, whose files have nothing to do with one another, as one by the clock."""
    start = min(record.header.started for record in records)
    files = [
        msgspec.structs.replace(file, at=round(file.at + record.header.started - start, 3))
        for record in records
        for file in record.files
    ]
    names = dict.fromkeys(name for record in records for name in record.header.images)
    header = Header(
        layergate_record=VERSION,
        images=list(names),
        layers=[layer for record in records for layer in record.header.layers],
        started=start,
    )
    first: dict[str, OpenedFile] = {}
    for file in sorted(files, key=lambda one: one.at):
        first.setdefault(file.path, file)
    return Record(header, tuple(first.values()))


def _matches(kept: Kept, name: str) -> bool:
    if name in kept.names or _canonical(name) in map(_canonical, kept.names):
        return True
    digits = name.removeprefix("sha256:")
    return len(digits) >= 6 and os.path.basename(kept.path).startswith(digits)


def _canonical(name: str) -> str:
    try:
        return str(parse_reference(name))
    except InvalidReference:
        return name
