"""A mounter whose blobs fail on demand, for tests to run as a process.

    python -m tests.mounter.faulty_mounter ROOT MODE FAULTS < settings.json

Files in the directory FAULTS steer it:

    requests    written: a line "START END" for each request, before anything of it is sent
    hold        while it is there, no request gets a byte
    fail        while it is there, requests fail as if the registry could not be reached
    corrupt     while it is there, every block comes with a wrong byte
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import msgspec

from fetcher.blob import FileBlob
from fetcher.errors import RegistryUnreachable
from fetcher.store import FileSource, LayerRecord, Source
from mounter.probe import Mode
from mounter.process import serve
from mounter.settings import MounterSettings


class FaultyBlob(FileBlob):
    def __init__(self, path: str, faults: str) -> None:
        super().__init__(path)
        self._faults = faults

    def _is(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._faults, name))

    def _note(self, line: str) -> None:
        with open(os.path.join(self._faults, "requests"), "a", encoding="ascii") as log:
            log.write(line)

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self._note(f"{start} {end}\n")
        async with aclosing(self._faulty(start, end)) as blocks:
            yield blocks

    async def _faulty(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        size = 1 << 16
        async with super().stream(start, end) as blocks:
            whole = b"".join([block async for block in blocks])
        for position in range(0, len(whole), size):
            while self._is("hold"):  # noqa: ASYNC110 - another process decides
                await anyio.sleep(0.01)
            if self._is("fail"):
                raise RegistryUnreachable("the registry cannot be reached", host="registry.test")
            block = whole[position : position + size]
            if self._is("corrupt"):
                middle = len(block) // 2
                block = block[:middle] + bytes([block[middle] ^ 0x40]) + block[middle + 1 :]
            yield block


def main() -> None:
    root, mode, faults = sys.argv[1:]
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=MounterSettings)

    async def open_blob(source: Source, record: LayerRecord) -> FaultyBlob:
        assert isinstance(source, FileSource)
        return FaultyBlob(source.path, faults)

    serve(root, Mode(mode), settings, ready=lambda: None, open_blob=open_blob)


if __name__ == "__main__":
    main()
