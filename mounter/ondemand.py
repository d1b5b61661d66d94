"""Fetching files on demand: the one place where an open that waits turns into requests. No FUSE in it.

One fetch a file, however many ask. A fetch is a set of chunks that were asked for, each an `Arrival`;
whole files and single chunks of large ones go the same way. Requests belong to a task group of the
mounter's, not to who asked: they go on when a waiter has given up, for the next one.

Belongs to the event loop; inflating, verifying and writing happen in worker threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
from anyio import to_thread
from anyio.abc import TaskGroup

from fetcher.demand import HOLD_SECONDS, Demand, Slot
from fetcher.errors import (
    FetchError,
    RegistryUnavailable,
    RegistryUnreachable,
    StoreError,
)
from fetcher.logs import get_logger
from fetcher.nodes import Chunk, Member, Node
from fetcher.placing import Writings
from fetcher.progress import Field
from fetcher.store import FileSource, LayerRecord, LayerStore, Source
from mounter.counters import Counters, Histogram
from mounter.errors import TooSlow
from mounter.incoming import Incoming, take_run
from mounter.link import LinkEstimate, RequestTimer
from mounter.loaded import LoadedLayer, LoadedLayers
from mounter.neighbours import Coming, write
from mounter.partial import Arrival, MemberPart, PartialFile, members, runs
from mounter.settings import MounterSettings
from mounter.streams import Streams
from mounter.waits import Waits

if TYPE_CHECKING:  # a registry client is loaded at the first need: mounter.blobs
    from fetcher.blob import Blob

log = get_logger("layergate.mounter")

OpenBlob = Callable[[Source, LayerRecord], "Awaitable[Blob]"]
"""The seam to where blobs are. Raises FetchError."""

_TRANSIENT: Final = (RegistryUnreachable, RegistryUnavailable)
_RETRY_SECONDS: Final = 0.25
_LINGER_SECONDS: Final = 0.03
"""Background streams go on pausing for so long: one miss seldom comes alone."""
_ANSWER_SECONDS: Final = 0.02
"""How long neighbours stand back for answers: where many ask at once, there is always another one."""
_STALLED_SECONDS: Final = 1.0
"""A request that brings nothing for so long is not relied on by those who wait for its neighbours."""
_BATCH: Final = 128 << 10
"""Compressed bytes of neighbours that are written together; whoever waits for one of them waits so long."""


class OnDemand:
    """Brings files of lazy layers at the moment when somebody waits for them."""

    def __init__(
        self,
        store: LayerStore,
        open_blob: OpenBlob,
        settings: MounterSettings,
        tasks: TaskGroup,
        counters: Counters,
    ) -> None:
        self.settings = settings
        self.counters = counters
        self.latency = Histogram()
        self.link = LinkEstimate(bandwidth=settings.assumed_bandwidth, round_trip=settings.assumed_round_trip)
        self.layers = LoadedLayers(store)
        self.waits = Waits(store.root, enabled=settings.record)
        self.in_flight = 0
        """Requests that are under way or queued."""
        self.streams = Streams(self.link, lambda: self.in_flight)
        self._open_blob = open_blob
        self._tasks = tasks
        self._requests = anyio.CapacityLimiter(settings.concurrent_requests)
        self._demand = Demand(store.root)
        self._marking = False
        self._answering = 0
        self._answered = anyio.Event()

    def configure(self, settings: MounterSettings) -> None:
        """Take new settings for everything that begins from now on."""
        self.settings = settings
        self.waits.enabled = settings.record
        self._requests.total_tokens = settings.concurrent_requests

    def is_large(self, loaded: LoadedLayer, node: Node) -> bool:
        """Whether what is missing of the file would take longer than an open should wait."""
        partial = loaded.partials.get(node.path)
        if partial is None:
            parts = members(node, range(len(node.chunks)))
            missing = sum(part.end - part.offset for part in parts)
        else:
            missing = partial.missing_bytes()
        bandwidth = self.link.bandwidth
        if loaded.progress[Field.STOP]:
            bandwidth = max(bandwidth, loaded.progress[Field.RATE])
        return missing > bandwidth * self.settings.large_file_seconds

    async def fetch(self, loaded: LoadedLayer, node: Node, *, patient: bool = False) -> None:
        """Return when the regular file is in PLAIN.

        A `patient` fetch tries again after failures that may pass. Raises FetchError, and TooSlow at the
        end of the configured wait.
        """
        if loaded.plain.has(node):
            return
        self.counters.fetches += 1
        self.waits.note(loaded.key, node.path, None, loaded.record.images)
        start = anyio.current_time()
        wait = self.settings.wait_seconds
        try:
            with anyio.fail_after(wait), self.using(loaded, node) as partial:
                await self._until_whole(loaded, partial, start + wait if patient else start)
        except TimeoutError:
            self.counters.fetch_failures += 1
            raise TooSlow(f"{node.path!r} did not come within {wait:g} seconds") from None
        except FetchError:
            self.counters.fetch_failures += 1
            raise
        self.latency.add(anyio.current_time() - start)

    async def bring(
        self, loaded: LoadedLayer, partial: PartialFile, wanted: range, *, ahead: int = 0
    ) -> bool:
        """Return True when the `wanted` chunks are in `partial`, False if the file is in PLAIN instead.

        `ahead` compressed bytes behind them are asked for as well. The caller holds `using`. Failures
        that may pass are tried again. Raises FetchError, and TooSlow when nothing has come for the
        configured wait.
        """
        deadline = anyio.current_time() + self.settings.wait_seconds
        if not partial.has(wanted):
            part = partial.node.chunks[wanted.start].file_offset, _file_end(partial.node.chunks[wanted[-1]])
            self.waits.note(loaded.key, partial.node.path, part, loaded.record.images)
        while True:
            self._ask_ahead(loaded, partial, wanted, ahead)
            if partial.has(wanted):
                return True
            if loaded.plain.has(partial.node):
                return False
            try:
                await self._settled(partial, wanted)
            except _TRANSIENT:
                if anyio.current_time() >= deadline:
                    raise
                await anyio.sleep(_RETRY_SECONDS)

    @contextmanager
    def using(self, loaded: LoadedLayer, node: Node) -> Iterator[PartialFile]:
        """The file as far as it is here, kept for the time of the block."""
        partial = loaded.partial(node)
        partial.users += 1
        try:
            with loaded.using():
                yield partial
        finally:
            partial.users -= 1
            partial.last_used = anyio.current_time()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A file is here, and whoever asked for it is being told: what nobody waits for stands back."""
        self._answering += 1
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering:
                self._answered.set()
                self._answered = anyio.Event()

    async def _until_answered(self) -> None:
        """Return when nobody is being told, who may have been woken just now; soon, in any case."""
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(_ANSWER_SECONDS):
            while self._answering:
                await self._answered.wait()

    async def _until_whole(self, loaded: LoadedLayer, partial: PartialFile, give_up: float) -> None:
        if not partial.have:
            await to_thread.run_sync(partial.create_empty)
            return
        node = partial.node
        if (
            await self.streams.prefetched(loaded, node, longest=self.settings.wait_seconds)
            or await self._comes_along(loaded, node)
            or await self.streams.about_to_bring(loaded, node)
        ):
            self.counters.streamed += 1
            return
        every = range(len(partial.have))
        while not partial.has(every) and not loaded.plain.has(partial.node):
            self._ask(loaded, partial, partial.missing(every), neighbours=True)
            try:
                await _all_settled(list(partial.arrivals.values()))
            except _TRANSIENT:
                if anyio.current_time() >= give_up:
                    raise
                await anyio.sleep(_RETRY_SECONDS)

    async def _comes_along(self, loaded: LoadedLayer, node: Node) -> bool:
        """Wait for a request that brings the file as another one's neighbour; whether it did."""
        coming = next((one for one in loaded.coming if one.brings(node)), None)
        if coming is None:
            return False
        while coming.brings(node):
            with anyio.move_on_after(_STALLED_SECONDS) as scope:
                await coming.moved.wait()
            if scope.cancelled_caught:
                return False
        return loaded.plain.has(node)

    def _ask_ahead(self, loaded: LoadedLayer, partial: PartialFile, wanted: range, ahead: int) -> None:
        """Ask for what is wanted together with what comes next; for the latter alone, not in small pieces."""
        end = _reach(partial, wanted.stop, ahead)
        missing = partial.missing(wanted)
        if missing:
            self._ask(loaded, partial, partial.missing(range(missing[0], end)))
            return
        missing = partial.missing(range(wanted.stop, end))
        if missing and missing[0] < _reach(partial, wanted.stop, ahead // 2):
            end = _reach(partial, missing[0], ahead)
            self._ask(loaded, partial, partial.missing(range(missing[0], end)))

    def _ask(
        self, loaded: LoadedLayer, partial: PartialFile, indexes: Sequence[int], *, neighbours: bool = False
    ) -> None:
        for index in indexes:
            partial.arrivals[index] = Arrival()
        for run in runs(members(partial.node, indexes)):
            coming = self._neighbours(loaded, run) if neighbours else None
            self._tasks.start_soon(self._request, loaded, partial, run, coming)

    async def _settled(self, partial: PartialFile, wanted: range) -> None:
        """Wait for chunks as long as bytes of the file keep coming.

        Raises TooSlow, and what one of them failed with, whenever in between that was.
        """
        start = anyio.current_time()
        wait = self.settings.wait_seconds
        for arrival in [partial.arrivals[index] for index in wanted if index in partial.arrivals]:
            while not arrival.settled.is_set():
                with anyio.move_on_at(max(start, partial.moved) + wait) as scope:
                    await arrival.settled.wait()
                if scope.cancelled_caught and anyio.current_time() >= max(start, partial.moved) + wait:
                    raise TooSlow(f"{partial.node.path!r}: nothing has come for {wait:g} seconds")
            if arrival.error is not None:
                raise arrival.error

    async def _request(
        self, loaded: LoadedLayer, partial: PartialFile, run: list[MemberPart], coming: Coming | None
    ) -> None:
        """Bring one run of members; settles the arrival of each of its chunks in any case."""
        error: FetchError | None = None
        try:
            with self.using(loaded, partial.node), self._busy():
                async with self._requests:
                    if not loaded.plain.has(partial.node):
                        await self._from_sources(loaded, partial, run, coming)
        except FetchError as failure:
            error = failure
            log.warning("fetch_failed", layer=loaded.key, path=partial.node.path, error=str(failure))
        except Exception as defect:
            # A defect in one request must not take the mount away from every container: it fails alone.
            error = FetchError(f"{partial.node.path!r}: {defect!r}")
            log.exception("request_broken", layer=loaded.key, path=partial.node.path)
        finally:
            for index in itertools.chain.from_iterable(part.indexes for part in run):
                arrival = partial.arrivals.pop(index, None)
                if arrival is not None:
                    arrival.error = error
                    arrival.settled.set()
            if coming is not None:
                loaded.settle_neighbours(coming)

    async def _from_sources(
        self, loaded: LoadedLayer, partial: PartialFile, run: list[MemberPart], coming: Coming | None
    ) -> None:
        if loaded.record_doubtful:
            await self.layers.refresh_record(loaded)
        sources = loaded.record.sources
        error = FetchError(f"layer {loaded.key} has no source to be fetched from")
        for turn in range(len(sources)):
            index = (loaded.preferred + turn) % len(sources)
            try:
                blob = await self._open_blob(sources[index], loaded.record)
                await self._read(blob, loaded, partial, run, coming)
            except FetchError as failure:
                if isinstance(failure, StoreError) and not isinstance(sources[index], FileSource):
                    raise  # our own disk: another source would not help
                log.info("source_failed", layer=loaded.key, source=str(sources[index]), error=str(failure))
                if not isinstance(error, _TRANSIENT):
                    error = failure
            else:
                loaded.preferred = index
                return
        loaded.record_doubtful = True
        raise error

    async def _read(
        self,
        blob: Blob,
        loaded: LoadedLayer,
        partial: PartialFile,
        run: list[MemberPart],
        coming: Coming | None,
    ) -> None:
        """Read what is missing of a run of members from a blob and take the file's chunks out of them.

        Then what is `coming` behind it.
        """
        run = [part for part in run if not partial.has(part.indexes)]
        if not run:
            return
        self.counters.requests += 1
        timer = RequestTimer(self.link, anyio.current_time())

        def came(count: int) -> None:
            partial.moved = anyio.current_time()
            timer.block(count, partial.moved)
            self.counters.fetched_bytes += count
            loaded.progress.add(Field.FETCHED_ON_DEMAND, count)

        try:
            async with blob.stream(run[0].offset, coming.end if coming else run[-1].end) as blocks:
                reader = Incoming(blocks, came)
                await take_run(partial, run, reader)
                if coming is not None:
                    await self._bring_neighbours(loaded, coming, reader)
                await reader.finish()
        except FetchError as error:
            if coming is None or not all(partial.has(part.indexes) for part in run):
                raise
            log.info("neighbours_not_fetched", layer=loaded.key, error=str(error))
        timer.end()

    def _neighbours(self, loaded: LoadedLayer, run: Sequence[MemberPart]) -> Coming | None:
        """What to ask for behind a missed file."""
        if not self.settings.neighbour_bytes:
            return None
        size = loaded.read_ahead.size(run[0].offset, self.link, self.settings.neighbour_bytes)
        coming = loaded.expect_neighbours(run[-1].end, size)
        loaded.read_ahead.asked(coming.end if coming else run[-1].end)
        return coming

    async def _bring_neighbours(self, loaded: LoadedLayer, coming: Coming, reader: Incoming) -> None:
        batch: list[tuple[Member, bytes]] = []
        size = 0
        # To write them takes the interpreter from the thread that tells of the file before them.
        await self._until_answered()
        with closing(Writings(loaded.plain, coming.holds)) as writings:
            for member in coming.members:
                await reader.take(member.offset - (batch[-1][0].end if batch else coming.position))
                batch.append((member, await reader.take(member.end - member.offset)))
                size += member.end - member.offset
                if size >= _BATCH or member.end == coming.end:
                    count = await to_thread.run_sync(write, loaded.plain, writings, batch)
                    self.counters.neighbours += count
                    coming.advance(member.end)
                    batch, size = [], 0

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Background streams pause while this goes on."""
        self.in_flight += 1
        self._demand.mark(Slot.ON_DEMAND)
        if not self._marking:
            self._marking = True
            self._tasks.start_soon(self._keep_marking)
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._demand.mark(Slot.ON_DEMAND, _LINGER_SECONDS)

    async def _keep_marking(self) -> None:
        while self.in_flight:
            self._demand.mark(Slot.ON_DEMAND)
            await anyio.sleep(HOLD_SECONDS / 3)
        self._marking = False


def _file_end(chunk: Chunk) -> int:
    return chunk.file_offset + chunk.size


def _reach(partial: PartialFile, start: int, size: int) -> int:
    """The index behind the last chunk that begins within `size` compressed bytes of chunk `start`."""
    chunks = partial.node.chunks
    index = start
    while size > 0 and index < len(chunks):
        size -= chunks[index].end - chunks[index].offset
        index += 1
    return index


async def _all_settled(arrivals: Sequence[Arrival]) -> None:
    """Return when all have come; raises what one of them failed with, whenever in between that was."""
    for arrival in arrivals:
        await arrival.settled.wait()
        if arrival.error is not None:
            raise arrival.error
