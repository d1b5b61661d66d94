"""META of a worker's layer, made in processes of its own while the worker brings the prefetch range."""

from __future__ import annotations

import os
import signal
from typing import Final

import anyio
import msgspec

from fetcher.errors import FetchError, RegistryError, StoreError
from fetcher.logs import get_logger
from fetcher.tree import LayerTree
from mounter.errors import MounterError, MountFailed
from mounter.forks import end_with_parent
from mounter.meta import ensure_meta
from snapshotter.worker_messages import Failed

log = get_logger("layergate.worker")

META_NICE: Final = 2
_PROCESSES: Final = 2
_MADE: Final = b"made"
"""What the process that makes META says at last, if it is not a Failed as JSON."""
_SAID_LIMIT: Final = 1 << 16
_FAILURES: Final = msgspec.json.Decoder(Failed)


def failed(error: FetchError | MounterError | OSError) -> Failed:
    """What a worker says of an error that is not a defect of ours."""
    # What the node lacks now, room, memory, a disk that can be written to, it may have soon.
    transient = isinstance(error, RegistryError | StoreError | MountFailed | OSError)
    return Failed(type(error).__name__, str(error), transient)


class MetaFailed(Exception):
    """META could not be made; `report` is what the process that tried says."""

    def __init__(self, report: Failed) -> None:
        super().__init__(report.message)
        self.report = report


class MetaMaking:
    """META being made in a process forked off this one, which has the tree. Close it in any case.

    A second of work for a large layer, in which this process brings the prefetch range.
    """

    def __init__(self, root: str, layer: str, tree: LayerTree) -> None:
        """Fork; while no event loop and no thread is here. Raises OSError."""
        self._said, said = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            status = 1
            try:
                end_with_parent(parent)
                os.setpriority(os.PRIO_PROCESS, 0, META_NICE)
                os.write(said, _make_meta(root, layer, tree))
                status = 0
            finally:
                os._exit(status)
        os.close(said)

    async def made(self) -> None:
        """Return when META stands. Raises MetaFailed."""
        await anyio.wait_readable(self._said)
        said = os.read(self._said, _SAID_LIMIT)
        _, status = os.waitpid(self._pid, 0)  # noqa: ASYNC222 - it has nothing left to do
        self._pid = 0
        if not said:
            how = f"the process that made META ended (exit code {os.waitstatus_to_exitcode(status)})"
            raise MetaFailed(Failed("WorkerDied", how, True))
        if said != _MADE:
            raise MetaFailed(_FAILURES.decode(said))

    def close(self) -> None:
        """End it if it is still at work."""
        os.close(self._said)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


def _make_meta(root: str, layer: str, tree: LayerTree) -> bytes:
    """What is to be said of it."""
    try:
        ensure_meta(root, layer, tree, processes=_PROCESSES)
    except (MounterError, OSError) as error:
        return msgspec.json.encode(failed(error))
    except Exception as error:
        log.exception("worker_crashed")
        return msgspec.json.encode(Failed(type(error).__name__, f"internal error: {error}", False))
    return _MADE
