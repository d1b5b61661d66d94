"""A real server on a real socket, in a thread with an event loop of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.lowlevel

from snapshotter.lowers import Lowers
from snapshotter.metadata import Metadata
from snapshotter.server import serve_grpc
from snapshotter.service import SnapshotsService
from snapshotter.snapshots import Snapshotter


@contextmanager
def serving(root: Path, socket_path: str, lowers: Lowers) -> Iterator[None]:
    """Serve a snapshotter on `root` inside the block; what ends the server early is raised at its end."""
    started = threading.Event()
    stop: list[Callable[[], None]] = []
    failures: list[BaseException] = []

    async def serve() -> None:
        with Metadata(str(root / "metadata.db")) as metadata:
            snapshotter = Snapshotter(root, metadata, lowers)
            service = SnapshotsService(snapshotter)
            async with serve_grpc(socket_path, service.register):
                stopping = anyio.Event()
                token = anyio.lowlevel.current_token()
                stop.append(lambda: anyio.from_thread.run_sync(stopping.set, token=token))
                started.set()
                await stopping.wait()
            await service.drain(5)

    def run() -> None:
        try:
            anyio.run(serve)
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="server")
    thread.start()
    started.wait()
    try:
        if failures:
            raise failures[0]
        yield
    finally:
        for end in stop:
            end()
        thread.join()
    if failures:
        raise failures[0]
