"""The process that brings one layer here: META, prefetch range, then the rest.

Forked by multiprocessing's fork server for one layer and gone afterwards. It
reports over its pipe and stops when the pipe closes, so it does not outlive
`layergate serve`; whatever it has linked in by then stays.

    serve                 worker
      |  -- fork(task) -->  |
      |  <---- Sound -----  |   the tree is sound, and META will show it whole: the layer can be promised
      |  <---- Ready -----  |   META stands: the layer can be mounted. A process of its own makes it meanwhile
      |  <-- Prefetched --  |   [0, landmark) is here
      |  ---- Continue -->  |   (or Stop: give the processor to another layer's prefetch)
      |  <--- Complete ---  |   the completion mark stands
      |  <---- Failed ----  |   instead of any of the above
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Final

import anyio

from fetcher.demand import Demand
from fetcher.errors import FetchError, StoreError
from fetcher.logs import configure_logs, get_logger
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.sources import BlobSources
from fetcher.store import FileSource, LayerStore
from fetcher.stream import LayerStream, Pause, missing_spans
from fetcher.tree import LayerTree
from mounter.errors import MounterError
from mounter.forks import set_title
from snapshotter.worker_messages import (
    Complete,
    Failed,
    Order,
    Prefetched,
    Ready,
    Report,
    Sound,
    Stop,
    Task,
    failed,
)
from snapshotter.worker_meta import MetaFailed, MetaMaking

log = get_logger("layergate.worker")

_PREFETCH_NICE = 4
_BACKGROUND_NICE = 10
_RECEIVE_BUFFER = 1 << 20
"""Bytes of socket buffer a background stream may fill while it yields to foreground work."""
_YIELD_SECONDS = 0.004
_LISTEN_SECONDS = 0.25
"""How long an order may wait while rate or disk hold a stream back."""
_MEASURE_BYTES = 2 << 20
"""Compressed bytes between two looks at the disk."""
_WAIT_SECONDS = 0.05
_LONGEST_YIELD_SECONDS = 5.0
"""So that endless foreground work cannot starve a stream."""
_LOOKED_UP: Final = ("etc/passwd", "etc/group")
_LOOKED_UP_SPAN: Final = 256 << 10
"""Compressed bytes between them that cost less than a request."""


class _Stopped(Exception):
    """The order to stop came, or nobody is there any more to give orders."""


def run_worker(task: Task, pipe: Connection) -> None:
    """Entry point in the forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_title(f"worker {task.layer}")
    configure_logs(task.log_level, layer=task.layer)
    worker = _Worker(task, pipe)
    try:
        try:
            worker.prepare()
            anyio.run(worker.run)
        except ExceptionGroup as group:
            raise _first(group) from group
    except _Stopped:
        return
    except MetaFailed as error:
        _report(pipe, error.report)
    except (FetchError, MounterError, OSError) as error:
        _report(pipe, failed(error))
    except BaseException as error:
        # A defect of ours must reach the scheduler as a failed layer, not as a silent end.
        log.exception("worker_crashed")
        _report(pipe, Failed(type(error).__name__, f"internal error: {error}", False))
    finally:
        worker.close()


def _first(error: Exception) -> Exception:
    """What was raised first in a task group."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _report(pipe: Connection, report: Report) -> None:
    try:
        pipe.send(report)
    except OSError as error:
        raise _Stopped from error


class _Worker:
    def __init__(self, task: Task, pipe: Connection) -> None:
        self._task = task
        self._pipe = pipe
        self._store = LayerStore(task.root)
        self._meta: MetaMaking | None = None
        self._ready: anyio.Event
        self._trusted: anyio.Event
        """What is in fs/ may be shown: it was written since the machine started, or verified."""
        self._prefetched = False
        self._streaming = False
        self._rate = 0
        self._min_free = 0
        self._unmeasured = 0
        self._started = 0.0
        self._sent = 0

    def prepare(self) -> None:
        """Load the tree, promise the layer if that can be done, and have META begun. Raises FetchError."""
        task, store = self._task, self._store
        tree = self._tree = store.tree(task.layer)
        self._progress = store.progress(task.layer)
        self._progress[Field.PREFETCH_END] = tree.landmark or 0
        self._progress[Field.FILES_TOTAL] = sum(1 for _ in tree.regular_files())
        store.keep_shape(task.layer, tree)
        if not any(node.xattrs for node in tree.inodes()):
            # Xattrs are the one thing that a tmpfs may refuse, so a layer that has some is not promised yet.
            _report(self._pipe, Sound())
        log.debug("sound")
        self._meta = MetaMaking(task.root, task.layer, tree)

    def close(self) -> None:
        """End what `prepare` has begun."""
        if self._meta is not None:
            self._meta.close()

    async def run(self) -> None:
        """Do the task; raises FetchError, MetaFailed, or _Stopped, perhaps in an ExceptionGroup."""
        self._ready, self._trusted = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_ready)
            if self._task.meta_only:
                self._trusted.set()
            else:
                self._look_at_trust()
                try:
                    await self._complete()
                except FetchError:
                    if self._trusted.is_set():
                        # Without a registry, too, a container can be started on what is here.
                        await self._ready.wait()
                    raise

    async def _report_ready(self) -> None:
        assert self._meta is not None
        await self._meta.made()
        log.debug("meta")
        await self._trusted.wait()
        _report(self._pipe, Ready())
        self._ready.set()

    def _look_at_trust(self) -> None:
        if self._store.is_complete(self._task.layer) or self._store.same_boot(self._task.layer):
            self._trusted.set()

    async def _complete(self) -> None:
        task, store, tree, progress = self._task, self._store, self._tree, self._progress
        # META of other layers comes before this one's files: nothing can be mounted without it.
        _set_nice(_PREFETCH_NICE)
        plain = PlainLayer(store.fs(task.layer), tree)
        async with self._right_to_stream(plain):
            if not store.is_complete(task.layer):
                if not store.same_boot(task.layer):
                    dropped = plain.drop_unverified()
                    store.mark_boot(task.layer)
                    log.info("verified_after_restart", dropped_files=dropped)
                self._trusted.set()
                plain.make_directories()
                await self._bring(plain, progress)
                plain.finish()
                store.mark_complete(task.layer)
        self._trusted.set()
        progress[Field.BYTES_DONE] = progress[Field.BYTES_TOTAL]
        progress[Field.FILES_DONE] = progress[Field.FILES_TOTAL]
        await self._ready.wait()
        _report(self._pipe, Complete())

    @contextlib.asynccontextmanager
    async def _right_to_stream(self, plain: PlainLayer) -> AsyncIterator[None]:
        """Hold the layer's lock. Whoever holds it meanwhile, for a manual mount say, does our work too."""
        while True:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(self._store.lock(self._task.layer, wait=False))
                except BlockingIOError:
                    pass
                else:
                    yield
                    return
            self._look_at_trust()
            if self._trusted.is_set() and not missing_spans(plain, 0, plain.tree.landmark or 0):
                await self._report_prefetched()
            while self._pipe.poll():
                self._obey()
            await anyio.sleep(_WAIT_SECONDS)

    async def _report_prefetched(self) -> None:
        if not self._prefetched:
            self._prefetched = True
            await self._ready.wait()
            _report(self._pipe, Prefetched())

    async def _bring(self, plain: PlainLayer, progress: Progress) -> None:
        landmark = plain.tree.landmark or 0

        def count_request(_kind: str) -> None:
            progress.add(Field.REQUESTS, 1)

        async with BlobSources(
            self._task.registry, receive_buffer=_RECEIVE_BUFFER, on_request=count_request
        ) as sources:
            for start, end in _looked_up_first(plain.tree):
                await self._stream(sources, plain, progress, Field.FETCHED_PREFETCH, start, end, _go_on)
            if landmark:
                await self._stream(sources, plain, progress, Field.FETCHED_PREFETCH, 0, landmark, _go_on)
            log.debug("prefetched")
            await self._report_prefetched()
            if not self._streaming:
                self._obey()
            _set_nice(_BACKGROUND_NICE)
            demand = Demand(self._task.root)

            async def pause(count: int) -> None:
                while self._pipe.poll():
                    self._obey()
                await _yield_to(demand)
                await self._keep_to_rate(count)
                await self._wait_for_room(count)

            _count(plain, progress)
            await self._stream(sources, plain, progress, Field.FETCHED_BACKGROUND, 0, plain.tree.end, pause)

    async def _stream(
        self,
        sources: BlobSources,
        plain: PlainLayer,
        progress: Progress,
        counter: Field,
        start: int,
        end: int,
        pause: Pause,
    ) -> None:
        """Bring [start, end) from the first source that can; raises what the last one failed with."""
        record = self._store.record(self._task.layer)
        failure: FetchError | None = None
        for source in record.sources:
            if isinstance(source, FileSource) and _is_gone(source):
                failure = StoreError(f"{source.path} is gone", errno=errno.ENOENT)
                continue
            try:
                blob = await sources.blob(source, record)
                await LayerStream(blob, plain, progress, counter=counter, pause=pause).run(start, end)
            except FetchError as error:
                if isinstance(error, StoreError) and not isinstance(source, FileSource):
                    raise  # our own disk: another source would not help
                log.info("source_failed", source=str(source), error=str(error))
                failure = error
                continue
            return
        raise failure or StoreError("the layer has no source left to fetch it from", errno=0)

    def _obey(self) -> None:
        """Take one order from the pipe, waiting for it; raises _Stopped for Stop or a closed pipe."""
        try:
            order: Order = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise _Stopped from error
        if isinstance(order, Stop):
            raise _Stopped
        self._streaming = True
        self._rate = order.bytes_per_second
        self._min_free = order.min_free
        self._started, self._sent = time.monotonic(), 0

    async def _wait_for_room(self, count: int) -> None:
        """serve looks at the disk once a second, in which a fast stream could fill it."""
        self._unmeasured += count
        if self._unmeasured >= _MEASURE_BYTES:
            self._unmeasured = 0
            while _free_bytes(self._task.root) < self._min_free:
                await anyio.sleep(_LISTEN_SECONDS)
                while self._pipe.poll():
                    self._obey()

    async def _keep_to_rate(self, count: int) -> None:
        self._sent += count
        while self._rate:
            ahead = self._sent / self._rate - (time.monotonic() - self._started)
            if ahead <= 0:
                return
            await anyio.sleep(min(ahead, _LISTEN_SECONDS))
            while self._pipe.poll():
                self._obey()


def _set_nice(value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, value)


def _is_gone(source: FileSource) -> bool:
    return not os.path.exists(source.path)


def _looked_up_first(tree: LayerTree) -> list[tuple[int, int]]:
    """Spans with what containerd reads of an image before it starts a container. Pure.

    No recorded order has these files, as nobody in the container opens them.
    """
    nodes = [node for name in _LOOKED_UP if (node := tree.nodes.get(name)) and len(node.chunks) == 1]
    spans = sorted((node.chunks[0].offset, node.chunks[0].end) for node in nodes)
    spans = [span for span in spans if span[0] >= (tree.landmark or 0)]  # others are prefetched
    if spans and spans[-1][1] - spans[0][0] <= _LOOKED_UP_SPAN:
        return [(spans[0][0], spans[-1][1])]
    return spans


async def _go_on(_count: int) -> None:
    """The pause of a prefetch: none."""


async def _yield_to(demand: Demand) -> None:
    until = time.monotonic() + _LONGEST_YIELD_SECONDS
    while demand.busy() and time.monotonic() < until:  # noqa: ASYNC110 - the flag is another process's
        await anyio.sleep(_YIELD_SECONDS)


def _count(plain: PlainLayer, progress: Progress) -> None:
    """Set the counters of what is here to what the file system says."""
    here = {id(node) for node in plain.tree.regular_files() if plain.has(node)}
    progress[Field.FILES_DONE] = len(here)
    progress[Field.BYTES_DONE] = sum(
        member.end - member.offset
        for member in plain.tree.members
        if all(id(node) in here for node, _ in member.pieces)
    )


def _free_bytes(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
