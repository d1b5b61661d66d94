"""META of a worker's layer, made in processes of its own beside the worker, where it takes long enough."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio
import msgspec

from fetcher.errors import FetchError
from fetcher.logs import get_logger
from fetcher.tree import LayerTree
from mounter.errors import MounterError
from mounter.forks import Child
from mounter.meta import ensure_meta
from snapshotter.worker_messages import Failed, Task, failed

log = get_logger("layergate.worker")

_NICE: Final = 2
_PROCESSES: Final = 2
_MADE: Final = b"made"
"""What the process that makes META says at last, if it is not a Failed as JSON."""
_SAID_LIMIT: Final = 1 << 16
_FAILURES: Final = msgspec.json.Decoder(Failed)


class MetaFailed(Exception):
    """META could not be made; `report` is what the process that tried says."""

    def __init__(self, report: Failed) -> None:
        super().__init__(report.message)
        self.report = report


class MetaMaking:
    """META being made in a process forked off this one. Close it in any case.

    Half a second of work for a large layer, in which this process makes its own tree and brings the prefetch
    range.
    """

    def __init__(self, task: Task, tree: Callable[[], LayerTree]) -> None:
        """Fork, while no event loop and no thread is here; the process calls `tree`. Raises OSError."""
        self._said, said = os.pipe()
        self._child = Child(partial(_make_meta, said, task, tree))
        os.close(said)

    async def made(self) -> None:
        """Return when META stands. Raises MetaFailed."""
        await anyio.wait_readable(self._said)
        said = os.read(self._said, _SAID_LIMIT)
        code = self._child.wait()  # it has nothing left to do
        if not said:
            how = f"the process that made META ended (exit code {code})"
            raise MetaFailed(Failed("WorkerDied", how, True))
        if said != _MADE:
            raise MetaFailed(_FAILURES.decode(said))

    def close(self) -> None:
        """End it if it is still at work."""
        os.close(self._said)
        self._child.close()


def _make_meta(said: int, task: Task, tree: Callable[[], LayerTree]) -> int:
    """Make it, and write into `said` how that went; the exit status."""
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    gc.disable()  # it ends before there is any garbage worth a look
    os.write(said, _made(task, tree))
    return 0


def _made(task: Task, tree: Callable[[], LayerTree]) -> bytes:
    try:
        ensure_meta(task.root, task.layer, tree(), task.meta_form, processes=_PROCESSES)
    except (FetchError, MounterError, OSError) as error:
        return msgspec.json.encode(failed(error))
    except Exception as error:
        log.exception("worker_crashed")
        return msgspec.json.encode(Failed(type(error).__name__, f"internal error: {error}", False))
    return _MADE
