"""Which layers are worked on, by how many processes at once. Runs in serve's event loop.

Each wanted layer that is not complete has one task here. It runs a worker
process (`snapshotter.worker`), first in one of the *prepare* places (META and
prefetch range: a container waits for them), then in one of the fewer *stream*
places. A worker that has prepared its layer goes on streaming if a place is
free, else it ends, and another one resumes the layer when its turn comes. While
anything prepares, streams yield (`fetcher.demand`).

What fails is tried again for as long as the layer is wanted, ever more slowly.
While streaming is paused, for want of room on the disk, stream workers are ended
and layers wait for their turn; the prepare places go on.
"""

from __future__ import annotations

import contextlib
import enum
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus

from fetcher.demand import HOLD_SECONDS, Demand, Slot
from fetcher.logs import get_logger
from fetcher.store import LayerStore
from mounter.meta import MetaForm
from mounter.uses import Uses
from snapshotter.config import Config
from snapshotter.errors import LayerFailed, Unavailable
from snapshotter.places import Place, Preparing
from snapshotter.worker_messages import Continue, Failed, Prefetched, Report, Task, failed
from snapshotter.workers import Worker

log = get_logger("layergate.streams")

_PREPARE_PLACES: Final = 4
_FIRST_RETRY_SECONDS: Final = 1.0
_LONGEST_RETRY_SECONDS: Final = 60.0


class State(enum.Enum):
    """What users see of a layer."""

    STUB = "stub"
    """Opened; nothing is being done for it now."""
    STREAMING = "streaming"
    COMPLETE = "complete"
    FAILED = "failed"
    """The last try failed; there may be another."""


@dataclass(slots=True)
class _Job:
    """One layer being brought here."""

    layer: str
    sound: anyio.Event = field(default_factory=anyio.Event)
    ready: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    worker: Worker | None = None
    prefetched: anyio.Event = field(default_factory=anyio.Event)
    rejected: bool = False
    """It ended before it was known to be sound."""
    mountable: bool = False
    has_prefetch: bool = False
    failure: Failed | None = None
    streaming: anyio.CancelScope | None = None
    over: anyio.Event = field(default_factory=anyio.Event)

    def become_ready(self) -> None:
        """META stands."""
        self.mountable = True
        self.failure = None
        self.ready.set()

    def become_prefetched(self) -> None:
        """The prefetch range is here, if not everything."""
        self.has_prefetch = True
        self.prefetched.set()

    def fail(self, failure: Failed) -> None:
        """The try failed; whoever waits is told."""
        self.failure = failure
        self.end()

    def end(self) -> None:
        """Nobody waits any longer."""
        if not self.sound.is_set():
            self.rejected = True
            self.sound.set()
        self.ready.set()
        self.prefetched.set()


class LayerStreams:
    """Brings wanted layers here; `run` must be running in a task group for anything to happen.

    `completed` is called when all of a layer is here, `ended` when nothing is done for it any more, as it is
    on disk, or not wanted: until then what serves it is kept.
    """

    def __init__(
        self,
        store: LayerStore,
        config: Config,
        *,
        completed: Callable[[str], None],
        meta_form: Callable[[], MetaForm],
        ended: Callable[[str], None] | None = None,
        slot: Slot = Slot.PREFETCH,
    ) -> None:
        self._store = store
        self._config = config
        self._completed = completed
        self._ended = ended
        self._meta_form = meta_form
        self._jobs: dict[str, _Job] = {}
        self._running: dict[int, _Job] = {}
        """By identity: a job that is not wanted any more takes a moment to end."""
        self._paused = False
        self._min_free = 0
        self._prepare = anyio.Semaphore(_PREPARE_PLACES)
        self._stream = anyio.Semaphore(config.stream.parallel_layers)
        self._preparing = Preparing(Demand(store.root), slot)
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled, workers end with it; started once layers may be wanted."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            task_status.started()
            while True:
                self._preparing.refresh()
                await anyio.sleep(HOLD_SECONDS / 3)

    def configure(self, config: Config) -> None:
        """Take a new configuration; running streams get the new rate at once."""
        self._config = config
        self._wake()
        self._pass_on_limits()

    def keep_free(self, count: int) -> None:
        """Have streams wait by themselves while less than `count` bytes are free on the disk."""
        if count != self._min_free:
            self._min_free = count
            self._pass_on_limits()

    def hold(self, seconds: float) -> None:
        """Let background streams yield for so long: a container is about to start."""
        self._preparing.hold(seconds)

    def pause(self) -> None:
        """Stream nothing until `resume`; META and prefetch ranges, for which containers wait, still come."""
        self._paused = True
        for job in self._jobs.values():
            if job.streaming is not None:
                job.streaming.cancel()

    def resume(self) -> None:
        """Go on streaming, and try again at once what failed."""
        self._paused = False
        self._wake()

    def want(self, layer: str) -> None:
        """See to it that the layer comes here, starting now."""
        if layer not in self._jobs and not self._store.is_on_disk(layer):
            assert self._tasks is not None, "LayerStreams.run is not running"
            job = self._jobs[layer] = _Job(layer)
            self._tasks.start_soon(self._bring, job, name=f"layer {layer}")

    def keep_only(self, wanted: Iterable[str]) -> None:
        """Stop working on every layer that is not wanted any more; what is here of it stays."""
        keep = set(wanted)
        for layer in [layer for layer in self._jobs if layer not in keep]:
            self.stop(layer)

    def stop(self, layer: str) -> None:
        """Stop working on a layer, if anything of ours does; what is here of it stays."""
        if layer in self._jobs:
            log.info("layer_not_wanted", layer=layer)
            self._jobs.pop(layer).scope.cancel()

    async def drop(self, layers: Collection[str]) -> None:
        """Stop working on these layers, and return when nothing of ours works on them any more."""
        for job in [job for job in self._running.values() if job.layer in layers]:
            if self._jobs.get(job.layer) is job:
                del self._jobs[job.layer]
            job.scope.cancel()
            await job.over.wait()

    async def until_on_disk(self) -> None:
        """Return when all that is wanted is complete, and will be after a power loss."""
        while self._jobs:
            await next(iter(self._jobs.values())).over.wait()

    def works_on(self, layer: str) -> bool:
        """Whether the layer is wanted and not complete yet, or not on disk."""
        return layer in self._jobs

    def works_on_any(self) -> bool:
        """Whether any layer is wanted and not complete yet, or not on disk."""
        return bool(self._jobs)

    async def sound(self, layer: str) -> None:
        """Wait until it is known that the layer can be mounted; META follows. Raises LayerFailed."""
        if self._store.is_complete(layer):
            return
        self.want(layer)
        job = self._jobs[layer]
        await job.sound.wait()
        if job.rejected and not job.mountable:
            raise _layer_failed(job)

    async def ready(self, layer: str) -> None:
        """Wait until the layer's META stands; raises Unavailable if it cannot be made."""
        if self._store.is_complete(layer):
            await self._build_meta(layer)
            return
        self.want(layer)
        job = self._jobs[layer]
        await job.ready.wait()
        if not job.mountable:
            raise _layer_failed(job)

    async def prefetched(self, layer: str) -> None:
        """Wait until the layer's META stands and its prefetch range is here.

        Raises LayerFailed with the reason of the first try that fails before that.
        """
        await self.ready(layer)
        job = self._jobs.get(layer)
        if job is None:
            return
        await job.prefetched.wait()
        if not job.has_prefetch and not self._store.is_complete(layer):
            raise _layer_failed(job)

    def state(self, layer: str) -> tuple[State, str | None]:
        """The layer's state, and why its last try failed."""
        job = self._jobs.get(layer)
        if self._store.is_complete(layer):
            return State.COMPLETE, None
        if job is None:
            return State.STUB, None
        if job.failure is not None:
            return State.FAILED, job.failure.message
        return (State.STREAMING if job.worker is not None else State.STUB), None

    async def _bring(self, job: _Job) -> None:
        delay = _FIRST_RETRY_SECONDS
        uses = Uses(self._store.root)
        self._running[id(job)] = job
        try:
            with job.scope:
                while True:
                    report = await self._tried(job, uses)
                    if not isinstance(report, Failed):
                        break
                    log.warning("layer_failed", layer=job.layer, kind=report.kind, error=report.message)
                    job.fail(report)
                    if not report.transient:
                        delay = _LONGEST_RETRY_SECONDS
                    with anyio.move_on_after(delay * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter, no secret
                        await self._changed.wait()
                    delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
        finally:
            uses.close()
            job.end()
            if self._jobs.get(job.layer) is job:
                del self._jobs[job.layer]
            del self._running[id(job)]
            job.over.set()
            if self._ended is not None:
                self._ended(job.layer)

    def _came(self, job: _Job) -> None:
        job.become_prefetched()
        log.info("layer_complete", layer=job.layer)
        self._completed(job.layer)

    async def _tried(self, job: _Job, uses: Uses) -> Report:
        """`_attempt`, whatever goes wrong in it. The layer is in `uses` from the first on."""
        try:
            if job.layer not in uses:
                await to_thread.run_sync(uses.add, job.layer)
            return await self._attempt(job)
        except OSError as error:  # no process, no descriptor, no room to be had
            return failed(error)
        except Exception as error:
            # A defect of ours: it costs the layer a try, and not the node its serve.
            log.exception("layer_attempt_broken", layer=job.layer)
            return Failed(type(error).__name__, f"internal error: {error}", True)

    async def _attempt(self, job: _Job) -> Report:
        """One try, prepare and then stream; the worker's last report."""
        prepare = Place(self._prepare, self._preparing)
        stream = Place(self._stream)
        try:
            await prepare.take()
            async with self._worker(job) as worker:
                report = await worker.until_prefetched()
                if not isinstance(report, Prefetched):
                    return report
                job.become_prefetched()
                prepare.release()
                # It does not wait for a place: its tree, 20 to 60 MB with all else, is soon loaded anew.
                if self._may_stream() and stream.take_now():
                    last = await self._streamed(job, worker)
                    if last is not None:
                        return last
            while True:
                stream.release()
                while not self._may_stream():
                    await self._changed.wait()
                await stream.take()
                async with self._worker(job) as worker:
                    report = await worker.until_prefetched()
                    if not isinstance(report, Prefetched):
                        return report
                    if (last := await self._streamed(job, worker)) is not None:
                        return last
        finally:
            prepare.release()
            stream.release()

    async def _streamed(self, job: _Job, worker: Worker) -> Report | None:
        """The worker's last report; None if streaming was paused before that."""
        if self._may_stream():
            try:
                with anyio.CancelScope() as job.streaming:
                    return await worker.stream(self._limits())
            finally:
                job.streaming = None
        return None

    @contextlib.asynccontextmanager
    async def _worker(self, job: _Job) -> AsyncIterator[Worker]:
        task = self._task(job.layer)
        came = partial(self._came, job)
        async with Worker(task, sound=job.sound.set, ready=job.become_ready, here=came) as worker:
            job.worker = worker
            try:
                yield worker
            finally:
                job.worker = None

    async def _build_meta(self, layer: str) -> None:
        """META of a complete layer, which a lazy lower needs beside incomplete ones."""
        task = self._task(layer, meta_only=True)
        ready = anyio.Event()
        async with Worker(task, sound=_unheard, ready=ready.set, here=_unheard) as worker:
            report = await worker.until_prefetched()
        if not ready.is_set():
            raise Unavailable(f"layer {layer}: {report.message if isinstance(report, Failed) else report}")

    def _task(self, layer: str, *, meta_only: bool = False) -> Task:
        config = self._config
        settings = config.registry_settings()
        return Task(self._store.root, layer, settings, config.log.level, self._meta_form(), meta_only)

    def _may_stream(self) -> bool:
        return self._config.stream.enabled and not self._paused

    def _wake(self) -> None:
        """Have everybody look again who waits for a change."""
        self._changed.set()
        self._changed = anyio.Event()

    def _pass_on_limits(self) -> None:
        for job in self._jobs.values():
            if job.worker is not None:
                job.worker.change(self._limits())

    def _limits(self) -> Continue:
        return Continue(self._rate(), self._min_free)

    def _rate(self) -> int:
        """Each stream's share of the configured rate, bytes a second; 0 means no limit."""
        limit = self._config.stream.bytes_per_second
        return max(1, limit // self._config.stream.parallel_layers) if limit else 0


def _unheard() -> None:
    """Nobody waits for it."""


def _layer_failed(job: _Job) -> LayerFailed:
    if job.failure is None:
        return LayerFailed(f"layer {job.layer}: it is not wanted any more", kind="")
    return LayerFailed(f"layer {job.layer}: {job.failure.message}", kind=job.failure.kind)
