"""A worker process as serve sees it: started from the fork server, heard over a pipe, ended with its block.

The fork server has everything imported that a worker needs, so a worker starts
in about 5 ms instead of the 200 ms of a fresh interpreter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self

import anyio
from anyio import to_thread

from fetcher.limits import ended, oom_kills
from mounter import forks
from snapshotter.worker import run_worker
from snapshotter.worker_messages import Continue, Failed, Here, Order, Ready, Report, Sound, Stop, Task

PRELOAD: Final = ("snapshotter.worker", "anyio._backends._asyncio", "httpx", "mounter.process", "trio")
"""What workers and the mounter need, for the fork server to have it loaded."""
_END_SECONDS: Final = 5.0


class Worker:
    """One worker process; an async context manager.

    `sound` is called when its layer can be promised, `ready` when it can be mounted, `here` when all is here.
    """

    def __init__(
        self,
        task: Task,
        *,
        sound: Callable[[], None],
        ready: Callable[[], None],
        here: Callable[[], None],
    ) -> None:
        self._task = task
        self._sound = sound
        self._ready = ready
        self._here = here
        self._pipe: Connection
        self._streaming = False
        self._oom_kills = oom_kills()

    async def __aenter__(self) -> Self:
        self._pipe, theirs = forks.pipe()
        try:
            self._process = await to_thread.run_sync(forks.start, run_worker, self._task, theirs)
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(Stop())
        self._pipe.close()
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(forks.close, self._process, _END_SECONDS)

    async def until_prefetched(self) -> Report:
        """Wait for the prefetch range or an end before that; calls `sound`, `ready` and `here` on the way."""
        report = await self._receive()
        if isinstance(report, Sound):
            self._sound()
            report = await self._receive()
        if isinstance(report, Ready):
            self._sound()
            self._ready()
            report = await self._receive() if not self._task.meta_only else report
        return await self._last(report)

    async def stream(self, order: Continue) -> Report:
        """Let it stream the rest; its last report."""
        self._streaming = True
        self._send(order)
        return await self._last(await self._receive())

    async def _last(self, report: Report) -> Report:
        if isinstance(report, Here):
            self._here()
            report = await self._receive()
        return report

    def change(self, order: Continue) -> None:
        """Tell a streaming worker its new limits."""
        if self._streaming:
            self._send(order)

    def _send(self, order: Order) -> None:
        # A worker that has died is seen by _receive.
        with contextlib.suppress(OSError):
            self._pipe.send(order)

    async def _receive(self) -> Report:
        await anyio.wait_readable(self._pipe.fileno())
        try:
            report: Report = self._pipe.recv()
        except (EOFError, OSError):
            await to_thread.run_sync(self._process.join, _END_SECONDS)
            how = ended(self._process.exitcode, oom_kills_before=self._oom_kills)
            return Failed("WorkerDied", f"the worker process {how}", True)
        return report
