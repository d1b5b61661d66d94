"""A mounter whose blobs fail on demand, steered by files in a directory, for tests to run as a process.

    python -m tests.mounter.faulty_mounter ROOT MODE FAULTS < settings.json

    FAULTS/requests     written: a line "START END" for each request, before anything of it is sent
    FAULTS/hold         while it is there, no request gets a byte
    FAULTS/fail         while it is there, requests fail as if the registry could not be reached
    FAULTS/corrupt      while it is there, every block comes with a wrong byte
    FAULTS/block        the size of the blocks that come, in bytes
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

    @asynccontextmanager
    async def stream(self, start: int, end: int) -> AsyncIterator[AsyncIterator[bytes]]:
        with open(os.path.join(self._faults, "requests"), "a", encoding="ascii") as log:
            log.write(f"{start} {end}\n")
        async with aclosing(self._faulty(start, end)) as blocks:
            yield blocks

    async def _faulty(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        size = 1 << 16
        if self._is("block"):
            with open(os.path.join(self._faults, "block"), encoding="ascii") as file:
                size = int(file.read())
        async with super().stream(start, end) as blocks:
            whole = b"".join([block async for block in blocks])
        for position in range(0, len(whole), size):
            while self._is("hold"):
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
