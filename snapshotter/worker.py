"""The process that brings one layer here: META, prefetch range, then the rest.

Forked by multiprocessing's fork server for one layer and gone afterwards. It
reports over its pipe and stops when the pipe closes, so it does not outlive
`layergate serve`; whatever it has linked in by then stays.

    serve                 worker
      |  -- fork(task) -->  |
      |  <---- Sound -----  |   the tree is sound, and META will show it whole: the layer can be promised
      |  <---- Ready -----  |   META stands: the layer can be mounted. A process makes that of a large layer
      |  <-- Prefetched --  |   [0, landmark) is here
      |  ---- Continue -->  |   (or Stop: give the processor to another layer's prefetch). Of a large layer
      |                     |   over a fast link, a process of its own places small files
      |  <----- Here -----  |   every file is here: containers can have the plain directory
      |  <--- Complete ---  |   it is on disk, and the completion mark stands
      |  <---- Failed ----  |   instead of any of the above
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import math
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

import anyio

from fetcher.errors import FetchError, StoreError, first_cause
from fetcher.logs import configure_logs, get_logger
from fetcher.memory import return_unreachable_memory
from fetcher.nodes import Member
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.sources import BlobSources
from fetcher.store import FileSource, LayerStore
from fetcher.stream import LayerStream, Pause, missing_spans
from fetcher.tree import LayerTree
from mounter.errors import MounterError
from mounter.forks import set_title
from mounter.meta import MetaForm, ensure_meta, has_meta, surely_shown
from snapshotter.worker_messages import (
    Complete,
    Failed,
    Here,
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
from snapshotter.worker_pace import Pace
from snapshotter.worker_placer import ProcessPlacer, is_worth_two

log = get_logger("layergate.worker")

_PREFETCH_NICE = 4
_BACKGROUND_NICE = 10
_RECEIVE_BUFFER = 1 << 20
"""Bytes of socket buffer a background stream may fill while it yields to foreground work. A prefetch, which
yields to nobody, has the kernel's own choice, which net.core.rmem_max does not bound."""
_WAIT_SECONDS = 0.05
_THREADS: Final = 2
"""For large members of the prefetch range, which a container waits for, and of layers worth two processes."""
_TELLING_BYTES: Final = 4 << 20
"""A prefetch range of at least so many compressed bytes tells how fast the link is."""
_LARGE_TOC: Final = 8 << 20
"""Bytes of a TOC of some 25,000 entries: a process that makes META makes the tree, too, beside ours. Of fewer
an image takes less than 0.1 s, and a process 25 MB, for each layer that is prepared at the time."""
_LOOKED_UP: Final = ("etc/passwd", "etc/group")
_LOOKED_UP_SPAN: Final = 256 << 10
"""Compressed bytes between them that cost less than a request."""
_SHORT_PREFETCH: Final = 8 << 20
"""Compressed bytes that need not come after them."""


class _Stopped(Exception):
    """The order to stop came, or nobody is there any more to give orders."""


def run_worker(task: Task, pipe: Connection) -> None:
    """Entry point in the forked process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    set_title(f"worker {task.layer}")
    configure_logs(task.log_level, layer=task.layer)
    worker = _Worker(task, pipe)
    try:
        try:
            worker.work()
        except ExceptionGroup as group:
            raise first_cause(group) from group
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
        self._stack = contextlib.ExitStack()
        self._meta: MetaMaking | None = None
        """What makes it beside us, if it was not made at once."""
        self._ready: anyio.Event
        self._trusted: anyio.Event
        """What is in fs/ may be shown: it was written since the machine started, or verified."""
        self._prefetched = False
        self._streaming = False
        self._pace: Pace

    def work(self) -> None:
        """Do the task, in parts; processes are forked between these, where no event loop is.

        Raises FetchError, MounterError, MetaFailed, or _Stopped, perhaps in an ExceptionGroup.
        """
        with self._stack:
            self._prepare()
            anyio.run(self._prefetch)
            if self._task.meta_only:
                return
            return_unreachable_memory()  # the event loop and the client, above all
            if not self._store.is_complete(self._task.layer):
                self._bring_rest()
                self._plain.finish()
                self._store.mark_here(self._task.layer)
            self._progress[Field.BYTES_DONE] = self._progress[Field.BYTES_TOTAL]
            self._progress[Field.FILES_DONE] = self._progress[Field.FILES_TOTAL]
            _report(self._pipe, Here())
            if not self._store.is_on_disk(self._task.layer):
                self._sync()
            _report(self._pipe, Complete())

    def _sync(self) -> None:
        try:
            self._plain.sync()
        except StoreError:
            # What it could not write the kernel takes for written from now on: only a look at all will tell.
            with contextlib.suppress(StoreError):
                self._store.distrust(self._task.layer)
            raise
        self._store.mark_complete(self._task.layer)

    def _prepare(self) -> None:
        """Load the tree, promise the layer if that can be done, and have META begun."""
        task, store = self._task, self._store
        toc = store.toc(task.layer)
        # What a large layer's start takes is one process's work after another's, while processors are idle.
        beside = toc.size >= _LARGE_TOC and not has_meta(task.root, task.layer)
        if beside:
            self._begin_meta(toc.shown_tree)
        tree = self._tree = toc.tree()
        self._plain = PlainLayer(store.fs(task.layer), tree)
        self._progress = store.progress(task.layer)
        self._pace = Pace(task.root, listen=self._listen)
        self._progress[Field.PREFETCH_END] = _first_spans(tree)[-1][1] if tree.landmark else 0
        store.keep_shape(task.layer, tree)
        if surely_shown(tree):
            _report(self._pipe, Sound())
        self._progress[Field.FILES_TOTAL] = sum(1 for _ in tree.regular_files())
        log.debug("sound")
        if beside:
            return
        if task.meta_form is MetaForm.TMPFS:  # 20 us an entry instead of 3
            self._begin_meta(lambda: tree)
        else:
            ensure_meta(task.root, task.layer, tree, task.meta_form)

    def _begin_meta(self, tree: Callable[[], LayerTree]) -> None:
        self._meta = self._stack.enter_context(contextlib.closing(MetaMaking(self._task, tree)))

    async def _prefetch(self) -> None:
        """After it META stands and, if more is wanted, the layer is ours and its prefetch range here."""
        self._ready, self._trusted = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._report_ready)
            if self._task.meta_only:
                self._trusted.set()
            else:
                self._look_at_trust()
                try:
                    await self._bring_prefetched()
                except FetchError:
                    if self._trusted.is_set():
                        # Without a registry, too, a container can be started on what is here.
                        await self._ready.wait()
                    raise

    async def _report_ready(self) -> None:
        if self._meta is not None:
            await self._meta.made()
        log.debug("meta")
        await self._trusted.wait()
        _report(self._pipe, Ready())
        self._ready.set()

    def _look_at_trust(self) -> None:
        if self._store.is_complete(self._task.layer) or self._store.same_boot(self._task.layer):
            self._trusted.set()

    async def _bring_prefetched(self) -> None:
        task, store, plain = self._task, self._store, self._plain
        # META of other layers comes before this one's files: nothing can be mounted without it.
        _set_nice(_PREFETCH_NICE)
        await self._get_right_to_stream()
        if store.is_complete(task.layer):
            self._trusted.set()
            return
        if not store.same_boot(task.layer):
            dropped = plain.drop_unverified()
            store.mark_boot(task.layer)
            log.info("verified_after_restart", dropped_files=dropped)
        self._trusted.set()
        begun, before = time.monotonic(), self._progress[Field.FETCHED_PREFETCH]
        async with self._sources(receive_buffer=None) as sources:
            for start, end in _first_spans(plain.tree):
                await self._stream(sources, Field.FETCHED_PREFETCH, start, end, _go_on)
        came = self._progress[Field.FETCHED_PREFETCH] - before
        if came >= _TELLING_BYTES:
            self._progress[Field.LINK_RATE] = int(came / (time.monotonic() - begun))
        log.debug("prefetched")
        await self._report_prefetched()

    async def _get_right_to_stream(self) -> None:
        """Take the layer's lock. Whoever holds it meanwhile, for a manual mount say, does our work too."""
        while True:
            try:
                self._stack.enter_context(self._store.lock(self._task.layer, wait=False))
            except BlockingIOError:
                pass
            else:
                return
            self._look_at_trust()
            if self._trusted.is_set() and not missing_spans(self._plain, 0, self._tree.landmark or 0):
                await self._report_prefetched()
            self._listen()
            await anyio.sleep(_WAIT_SECONDS)

    async def _report_prefetched(self) -> None:
        if not self._prefetched:
            self._prefetched = True
            await self._ready.wait()
            _report(self._pipe, Prefetched())

    def _bring_rest(self) -> None:
        if not self._streaming:
            self._obey()
        _set_nice(_BACKGROUND_NICE)
        # A look at every file is work, too, and a container may be about to start.
        anyio.run(self._pace.keep, 0)
        self._plain.make_directories()
        link_rate = self._progress[Field.LINK_RATE] or math.inf
        if not is_worth_two(_count(self._plain, self._progress), link_rate):
            anyio.run(self._bring_all, None)
            return
        with contextlib.closing(ProcessPlacer(self._task.layer, self._plain)) as placer:
            anyio.run(self._bring_all, placer)

    async def _bring_all(self, placer: ProcessPlacer | None) -> None:
        async with self._sources(_RECEIVE_BUFFER) as sources:
            await self._stream(
                sources, Field.FETCHED_BACKGROUND, 0, self._tree.end, self._pace.keep, placer=placer
            )

    def _sources(self, receive_buffer: int | None) -> BlobSources:
        def count_request(_kind: str) -> None:
            self._progress.add(Field.REQUESTS, 1)

        return BlobSources(self._task.registry, receive_buffer=receive_buffer, on_request=count_request)

    async def _stream(
        self,
        sources: BlobSources,
        counter: Field,
        start: int,
        end: int,
        pause: Pause,
        placer: ProcessPlacer | None = None,
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
                stream = LayerStream(
                    blob,
                    self._plain,
                    self._progress,
                    counter=counter,
                    pause=pause,
                    threads=_THREADS if placer or counter is Field.FETCHED_PREFETCH else 0,
                    placer=placer,
                )
                await stream.run(start, end)
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
        self._pace.limit(rate=order.bytes_per_second, min_free=order.min_free)

    def _listen(self) -> None:
        """Take the orders that are there; raises as `_obey`."""
        while self._pipe.poll():
            self._obey()


def _set_nice(value: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, value)


def _is_gone(source: FileSource) -> bool:
    return not os.path.exists(source.path)


def _first_spans(tree: LayerTree) -> list[tuple[int, int]]:
    """What comes before all else, a request each; the last one is the prefetch range, if there is one. Pure.

    That is what containerd reads of an image before it starts a container. No recorded order has these files,
    as nobody in the container opens them. Close behind a short prefetch range, they come with it.
    """
    landmark = tree.landmark or 0
    nodes = [node for name in _LOOKED_UP if (node := tree.nodes.get(name)) and len(node.chunks) == 1]
    spans = sorted((node.chunks[0].offset, node.chunks[0].end) for node in nodes)
    spans = [span for span in spans if span[0] >= landmark]  # others are prefetched
    if spans and 0 < landmark <= _SHORT_PREFETCH and spans[-1][1] - landmark <= _LOOKED_UP_SPAN:
        return [(0, spans[-1][1])]
    if spans and spans[-1][1] - spans[0][0] <= _LOOKED_UP_SPAN:
        spans = [(spans[0][0], spans[-1][1])]
    return [*spans, (0, landmark)] if landmark else spans


async def _go_on(_count: int) -> None:
    """The pause of a prefetch: none."""


def _count(plain: PlainLayer, progress: Progress) -> list[Member]:
    """Set the counters of what is here to what the file system says; the members that are still wanted."""
    here = {id(node) for node in plain.tree.regular_files() if plain.has(node)}
    missing = [
        member for member in plain.tree.members if any(id(node) not in here for node, _ in member.pieces)
    ]
    left = sum(member.end - member.offset for member in missing)
    progress[Field.FILES_DONE] = len(here)
    progress[Field.BYTES_DONE] = sum(member.end - member.offset for member in plain.tree.members) - left
    return missing
