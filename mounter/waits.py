"""Which files somebody had to wait for, kept for who will put them first: ROOT/records/waits/<layer>.jsonl.

One record (`fetcher.record`) a layer, in the order of first waits, times from its header's `started` on. Of
a large file that is read chunk by chunk the chunks are told. Noting costs an open nothing but an entry in a
dictionary; `flush` appends to the files. What is noted twice, by a mounter that ran before for one, is told
twice, and a reader unites it. A file that has reached its limit stays as it is.

Belongs to the event loop; writing happens in a worker thread.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Final, TypeAlias

from anyio import to_thread

from fetcher.errors import FormatError
from fetcher.record import VERSION, Header, OpenedFile, Range, format_line, parse_record

_FILE_LIMIT: Final = 1 << 20
"""Bytes of one layer's record: some 10,000 files."""
_NOTED_LIMIT: Final = 100_000
"""What is remembered as noted; after so many all may be noted once more."""

_Wait: TypeAlias = tuple[str, str, Range | None]


def waits_directory(root: str) -> str:
    """Where the records are."""
    return os.path.join(root, "records", "waits")


class Waits:
    """The waits of one root."""

    def __init__(self, root: str, *, enabled: bool) -> None:
        self.enabled = enabled
        self._directory = waits_directory(root)
        self._noted: set[_Wait] = set()
        self._new: dict[_Wait, float] = {}
        self._images: dict[str, list[str]] = {}

    def note(self, layer: str, path: str, part: Range | None, images: list[str]) -> None:
        """Somebody waits for `path`, or `part` of it, of a layer that these `images` have."""
        wait = layer, path, part
        if self.enabled and wait not in self._noted:
            if len(self._noted) >= _NOTED_LIMIT:
                self._noted.clear()
            self._noted.add(wait)
            self._new[wait] = time.time()
            self._images[layer] = images

    async def flush(self) -> None:
        """Write what was noted. Raises OSError; what could not be written is given up."""
        noted, self._new = self._new, {}
        images, self._images = self._images, {}
        if noted:
            await to_thread.run_sync(self._write, noted, images)

    def _write(self, noted: dict[_Wait, float], images: dict[str, list[str]]) -> None:
        by_layer: dict[str, list[tuple[float, str, Range | None]]] = {}
        for (layer, path, part), at in noted.items():
            by_layer.setdefault(layer, []).append((at, path, part))
        for layer, waits in by_layer.items():
            self._append(layer, images[layer], waits)

    def _append(self, layer: str, images: list[str], waits: list[tuple[float, str, Range | None]]) -> None:
        for directory in (os.path.dirname(self._directory), self._directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(self._directory, f"{layer}.jsonl")
        header = _header(path)
        lines = []
        if header is None:
            header = Header(
                layergate_record=VERSION,
                images=images,
                layers=[layer],
                started=round(waits[0][0], 3),
            )
            lines.append(format_line(header))
        for at, name, part in waits:
            since = round(max(0.0, at - header.started), 3)
            lines.append(format_line(OpenedFile(name, since, None if part is None else [part])))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < _FILE_LIMIT:
                os.write(fd, b"".join(lines))
        finally:
            os.close(fd)


def _header(path: str) -> Header | None:
    """The header of the record at `path`; None, and no file any more, if it has none."""
    with suppress(FileNotFoundError):
        try:
            with open(path, "rb") as file:
                return parse_record(file.readline(_FILE_LIMIT), name=path).header
        except FormatError:
            os.unlink(path)
    return None
