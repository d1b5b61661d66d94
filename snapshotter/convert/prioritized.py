"""Reading what `--prioritize` names: a list of paths, or a record. Blocking."""

from __future__ import annotations

import posixpath

from fetcher.errors import FormatError
from fetcher.images.writing import reading
from fetcher.record import FILES_LIMIT, SIZE_LIMIT, OpenedFile, parse_record


def read_prioritized(path: str) -> tuple[OpenedFile, ...]:
    """The files that are to come first, in their order: one path a line, or the lines of a record.

    Raises FormatError, StoreError.
    """
    with reading(path), open(path, "rb") as file:
        data = file.read(SIZE_LIMIT + 1)
    if len(data) > SIZE_LIMIT:
        raise FormatError(f"{path} has more than {SIZE_LIMIT} bytes: no list of paths")
    if data.lstrip().startswith(b"{"):
        return parse_record(data, name=path).files
    lines = [line.decode("utf-8", "surrogateescape").strip() for line in data.split(b"\n")]
    paths = dict.fromkeys(_cleaned(line) for line in lines if line and not line.startswith("#"))
    if len(paths) > FILES_LIMIT:
        raise FormatError(f"{path} has {len(paths)} paths; at most {FILES_LIMIT} are read")
    return tuple(OpenedFile(name) for name in paths if name)


def _cleaned(line: str) -> str:
    return posixpath.normpath("/" + line).lstrip("/")
