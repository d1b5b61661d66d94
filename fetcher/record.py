"""Records of what containers read: a JSON lines file that can be kept beside an image's source. Pure; no I/O.

    {"layergate_record": 1, "image": "registry.example/python:3", "started": 1764000000.0, ...}
    {"path": "usr/bin/python3.11", "at": 0.012}
    {"path": "srv/data/large.txt", "at": 0.4, "ranges": [[0, 4096], [81920, 86016]]}

The first line is a Header, each other one an OpenedFile, in the order of first opens. Fields that a reader
does not know are passed over, so that later versions may add some. Lines are ASCII: bytes of a name that
are no UTF-8 appear as lone surrogates (\\udc80 to \\udcff), as Python's surrogateescape has them.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from fetcher.errors import FormatError
from fetcher.typed import Converter

VERSION: Final = 1
FILES_LIMIT: Final = 100_000
"""Files in a record."""
SIZE_LIMIT: Final = 64 << 20
"""Bytes of a record."""
_PATH_LIMIT: Final = 4096
_RANGES_LIMIT: Final = 10_000

Range = tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(gt=0)]]
"""[start, end) of a file, in bytes."""


class Header(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was recorded; all but the version may be absent. Times in seconds, `started` since 1970."""

    layergate_record: int
    image: str = ""
    """What the image was called."""
    images: list[str] = []
    """Further names of it."""
    chain: str = ""
    """The chain ID of its layers."""
    layers: list[str] = []
    """Their keys on the node, from the lowest up."""
    command: list[str] = []
    started: float = 0.0
    seconds: float = 0.0
    """For how long it was recorded."""
    incomplete: bool = False
    """Whether more was opened than could be recorded."""
    workloads: int = 1
    """How many records this one was merged from."""


class OpenedFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that was opened; `path` has no leading slash, `at` is seconds since the start."""

    path: str
    at: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    ranges: list[Range] | None = None
    """What was read of it, in ascending order; None for all of it, or if nobody knows."""


class Record(msgspec.Struct, frozen=True):
    """A header and the files by first open; no path comes twice."""

    header: Header
    files: tuple[OpenedFile, ...]


_HEADERS: Final = Converter(Header)
_OPENED_FILES: Final = Converter(OpenedFile)


def parse_record(data: bytes, *, name: str) -> Record:
    """Read a record's bytes; `name` is what errors call it.

    A last line without its newline, which a crash cut short, is left out. A path that comes again was read
    in more parts. Raises FormatError, naming the line.
    """
    if len(data) > SIZE_LIMIT:
        raise FormatError(f"{name}: a record of {len(data)} bytes; at most {SIZE_LIMIT} are read")
    lines = data.split(b"\n")[:-1]
    if not lines:
        raise FormatError(f"{name}: no record: it has no header")
    if len(lines) - 1 > FILES_LIMIT:
        raise FormatError(f"{name}: a record of {len(lines) - 1} files; at most {FILES_LIMIT} are read")
    try:
        header = _HEADERS.convert(json.loads(lines[0]))
    except (ValueError, msgspec.ValidationError) as error:
        raise FormatError(f"{name}: no record: its first line is no header ({error})") from error
    if header.layergate_record != VERSION:
        raise FormatError(
            f"{name}: a record of version {header.layergate_record}; this layergate reads {VERSION}"
        )
    files: dict[str, OpenedFile] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            try:
                file = _checked(_OPENED_FILES.convert(json.loads(line)))
            except (ValueError, msgspec.ValidationError) as error:
                raise FormatError(f"{name}, line {number}: {error}") from error
            known = files.get(file.path)
            files[file.path] = file if known is None else _united(known, file)
    return Record(header, tuple(files.values()))


def format_record(record: Record) -> bytes:
    """The bytes of a record, which `parse_record` reads."""
    return format_line(record.header) + b"".join(map(format_line, record.files))


def format_line(value: Header | OpenedFile) -> bytes:
    """One line, with its newline."""
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode() + b"\n"


def merge_records(records: Sequence[Record]) -> Record:
    """One record of several workloads of an image, from the first one to the last.

    What each opened first comes first, then what each opened second, and so on: whichever of them runs,
    it finds what it needs about as early as with a record of its own. Ranges are united; a file that one
    workload read all of is read wholly. Raises ValueError for no records.
    """
    if not records:
        raise ValueError("nothing to merge")
    if len(records) == 1:
        return records[0]
    places: dict[str, tuple[int, int]] = {}
    files: dict[str, OpenedFile] = {}
    for turn, record in enumerate(records):
        for place, file in enumerate(record.files):
            known = files.get(file.path)
            places[file.path] = min(places.get(file.path, (place, turn)), (place, turn))
            files[file.path] = file if known is None else _united(known, file)
    ordered = sorted(files, key=places.__getitem__)[:FILES_LIMIT]
    return Record(_common(records, cut=len(files) > FILES_LIMIT), tuple(files[path] for path in ordered))


def extend_record(record: Record, further: Record) -> Record:
    """The record, and behind it what `further` alone has."""
    known = {file.path for file in record.files}
    added = tuple(file for file in further.files if file.path not in known)
    return Record(_common([record, further], cut=False), (record.files + added)[:FILES_LIMIT])


def unite(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in ascending ranges of which no two touch."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _checked(file: OpenedFile) -> OpenedFile:
    """The file with its path cleaned and its ranges in order. Raises ValueError."""
    path = posixpath.normpath(f"/{file.path}").lstrip("/")
    if not path or "\0" in path or len(_encoded(path)) > _PATH_LIMIT:
        raise ValueError(f"{file.path[:60]!r} is no path of a file")
    if file.ranges is not None:
        if len(file.ranges) > _RANGES_LIMIT or any(start >= end for start, end in file.ranges):
            raise ValueError(f"{file.path[:60]!r} has invalid ranges")
        file = msgspec.structs.replace(file, ranges=unite(file.ranges))
    return file if file.path == path else msgspec.structs.replace(file, path=path)


def _encoded(path: str) -> bytes:
    """A path as the system has it. Raises ValueError if it cannot have it."""
    return path.encode("utf-8", "surrogateescape")


def _united(one: OpenedFile, other: OpenedFile) -> OpenedFile:
    ranges = None if one.ranges is None or other.ranges is None else unite([*one.ranges, *other.ranges])
    return OpenedFile(one.path, min(one.at, other.at), ranges)


def _common(records: Sequence[Record], *, cut: bool) -> Header:
    headers = [record.header for record in records]
    names = dict.fromkeys(name for header in headers for name in (header.image, *header.images) if name)
    chains = {header.chain for header in headers}
    image, *images = names or [""]
    return Header(
        layergate_record=VERSION,
        image=image,
        images=images,
        chain=headers[0].chain if len(chains) == 1 else "",
        layers=headers[0].layers if len(chains) == 1 else [],
        started=min(header.started for header in headers),
        seconds=max(header.seconds for header in headers),
        incomplete=cut or any(header.incomplete for header in headers),
        workloads=sum(header.workloads for header in headers),
    )
