"""The keeper of one mount: from SOURCE to a native mount.

    claim           the mountpoint, in ROOT/mounts
    open            the layers, into the same store that `layergate serve` has
    prepare         META and prefetch range of each, by the same workers that serve has; the mounter
    mount           what is complete natively, the rest lazily                          -> Mounted
    stream          until all layers are complete                                       -> Progress
    swap            in place, once nothing is mounted inside                            -> Complete
    let go          of lazy lower, META and mounter

It is undone, and nothing stays but the layers in the cache, when it fails before it has mounted; when its
command goes away without a word to keep the mount; at SIGTERM and SIGINT; and when somebody unmounts it.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import AsyncIterator, Sequence
from functools import partial

import anyio
import msgspec
from anyio import CancelScope, to_thread

from fetcher.credentials import docker_config_path
from fetcher.demand import Slot
from fetcher.logs import get_logger
from fetcher.store import LayerStore
from mounter.errors import MounterError, mount_failures
from mounter.fork_socket import keep_fork_socket_in
from mounter.forks import start_fork_server
from mounter.lowers import Directory, lazy_id, mount_lazy_lower
from mounter.probe import Mode
from mounter.swap import Overlay, View, mount_view, mounted_inside, mounts_on, swap_view, topmost
from mounter.uses import Uses, release_unused
from snapshotter.cache.limits import free_space, min_free
from snapshotter.cache.mounted import forget_released_lowers
from snapshotter.chains import lower_parts, split_chain, tree_paths
from snapshotter.config import Config
from snapshotter.defaults import DEFAULT_CONFIG
from snapshotter.errors import Unavailable
from snapshotter.gates import Gate, Gates
from snapshotter.interrupts import heeded_interrupts
from snapshotter.lowers import LazyLink
from snapshotter.manual.errors import LazyImpossible, ManualMountError
from snapshotter.manual.messages import Complete, Mounted, Notice, Reporter
from snapshotter.manual.opening import lay_around, open_wanted
from snapshotter.manual.progress import report_progress
from snapshotter.manual.release import forget_gone, remove_files, unmount_ours
from snapshotter.manual.request import MountRequest, check_mountpoint, claim
from snapshotter.manual.state import ManualMounts, MountedLayer, MountKind, MountState
from snapshotter.manual.upper import dress_upper, make_upper
from snapshotter.manual.views import Wanted, merged, native_view, tree_view, trees_path
from snapshotter.manual.watching import MountChanges, mount_changes
from snapshotter.reload import watch_config
from snapshotter.streams import LayerStreams
from snapshotter.workers import PRELOAD

log = get_logger("layergate.manual")


class Ending(enum.Enum):
    """How a keeper ended that did not fail."""

    COMPLETE = "complete"
    UNMOUNTED = "unmounted"
    """Somebody took the mount away."""
    INTERRUPTED = "interrupted"
    """By SIGINT, or its command did not want the mount any more."""
    TERMINATED = "terminated"
    """By SIGTERM or SIGHUP."""


class Keeper:
    """One mount's keeper; `run` it once, in an asyncio event loop of its own."""

    def __init__(self, request: MountRequest, config: Config, reporter: Reporter) -> None:
        self._request = request
        self._config = _streaming(config)
        self._reporter = reporter
        self._store = LayerStore(request.root)
        self._mounts = ManualMounts(request.root)
        self._uses = Uses(self._store.root)
        self._gates = Gates(self._store.root, self._config)
        self._state: MountState | None = None
        self._ending: Ending | None = None
        self._scope: CancelScope | None = None
        self._missing: set[str] = set()
        self._completed = anyio.Event()
        self._mounts_changed = anyio.Event()

    async def run(self) -> Ending:
        """Keep the mount until it is native, or until it is not wanted; then everything is undone.

        So it is before any error is raised: SnapshotterError, FetchError, MounterError, OSError, maybe in an
        ExceptionGroup. Only where the command has left already with a mount that is up, that stays as it is
        for `layergate umount`: no error of ours is a reason to take files away from whoever uses them.
        """
        # Received to the end: an interrupt that nobody receives would break off the undoing itself.
        with anyio.open_signal_receiver(*heeded_interrupts()) as signals:
            try:
                async with anyio.create_task_group() as tasks:
                    self._scope = tasks.cancel_scope
                    tasks.start_soon(self._obey, signals)
                    tasks.start_soon(self._watch_command)
                    await self._keep()
                    self._end(Ending.COMPLETE)
            except Exception as error:
                # It is to end in any case; whatever fails on the way is for the log.
                if self._ending is None:
                    raise
                log.warning("failed_while_ending", error=repr(error))
            finally:
                if self._ending is not Ending.COMPLETE and not (self._ending is None and self._reporter.kept):
                    with CancelScope(shield=True):
                        await self._undo()
        assert self._ending is not None, "a task group that is left without an error was ended"
        return self._ending

    def _end(self, ending: Ending) -> None:
        if self._ending is None:
            self._ending = ending
            log.info("ending", how=ending.value)
        if self._scope is not None:
            self._scope.cancel()

    async def _obey(self, signals: AsyncIterator[signal.Signals]) -> None:
        async for number in signals:
            self._end(Ending.INTERRUPTED if number == signal.SIGINT else Ending.TERMINATED)

    async def _watch_command(self) -> None:
        await self._reporter.abandoned()
        self._end(Ending.INTERRUPTED)

    async def _keep(self) -> None:
        await to_thread.run_sync(self._claim)
        wanted = await self._open()
        incomplete = [link.layer for link in wanted.chain if not self._store.is_complete(link.layer)]
        if incomplete:
            await self._bring(wanted, incomplete)
        else:
            await self._mount_native(await to_thread.run_sync(self._look, wanted))
        with CancelScope(shield=True):
            await self._let_go()
            self._change(keeper=None)
        self._reporter.tell(Complete())

    def _claim(self) -> None:
        self._store.create_directories()
        self._mounts.create_directories()
        try:
            forget_gone(self._mounts)
        except (MounterError, OSError) as error:
            log.warning("not_released", error=str(error))
        self._state = claim(self._mounts, self._request)

    async def _open(self) -> Wanted:
        opened, wanted = await open_wanted(self._store, self._uses, self._request, self._config)
        self._change(layers=[MountedLayer(one.layer, one.digest) for one in opened])
        return wanted

    def _look(self, wanted: Wanted) -> Wanted:
        """What depends on how the layers look, now that somebody has looked at each."""
        return lay_around(self._store, self._mounts, self._request, wanted)

    async def _bring(self, wanted: Wanted, incomplete: Sequence[str]) -> None:
        """From layers that are not complete to a native mount."""
        reason = await self._gates.probe_host()
        if not self._gates.possible():
            raise LazyImpossible(f"layers that are not here yet cannot be mounted on this host: {reason}")
        self._missing.update(incomplete)
        streams = LayerStreams(
            self._store,
            self._config,
            completed=self._came,
            meta_form=self._gates.meta_form,
            slot=Slot.MANUAL,
        )
        with mount_changes() as changes:
            async with anyio.create_task_group() as tasks:
                await to_thread.run_sync(keep_fork_socket_in, self._store.root)
                await to_thread.run_sync(start_fork_server, PRELOAD)
                await tasks.start(streams.run)
                tasks.start_soon(self._gates.prepare)
                tasks.start_soon(self._follow_config, streams)
                for layer in incomplete:
                    streams.want(layer)
                    if not streams.works_on(layer):  # another process was just in time
                        self._came(layer)
                for layer in incomplete:
                    await streams.prefetched(layer)
                wanted = await to_thread.run_sync(self._look, wanted)
                view = await self._lazy_view(wanted, streams, await self._gate())
                if view is None:
                    await self._mount_native(wanted)
                else:
                    await to_thread.run_sync(self._mount, view, MountKind.LAZY)
                    self._reporter.tell(Mounted(len(wanted.chain), len(wanted.chain) - len(self._missing)))
                    layers = [link.layer for link in wanted.chain]
                    tasks.start_soon(report_progress, self._reporter, self._store, streams, layers)
                    tasks.start_soon(self._watch_mount, changes)
                    await self._completed.wait()
                    await self._swap(native_view(self._store, wanted))
                await streams.until_on_disk()
                tasks.cancel_scope.cancel()

    async def _mount_native(self, wanted: Wanted) -> None:
        await to_thread.run_sync(self._mount, native_view(self._store, wanted), MountKind.NATIVE)
        self._reporter.tell(Mounted(len(wanted.chain), len(wanted.chain)))

    async def _gate(self) -> Gate:
        """The gate, seen from here. Raises LazyImpossible."""
        try:
            gate = await self._gates.current()
        except Unavailable as error:
            raise LazyImpossible(str(error)) from error
        if not await to_thread.run_sync(self._sees_gate):
            raise LazyImpossible(f"the mounter of {self._store.root} runs in another mount namespace")
        return gate

    def _sees_gate(self) -> bool:
        return bool(mounts_on(os.path.join(os.path.realpath(self._store.root), "gate")))

    async def _follow_config(self, streams: LayerStreams) -> None:
        """Take over limits and registry settings as the configuration file changes."""
        credentials = docker_config_path(self._config.credentials.docker_config)

        def apply(config: Config) -> None:
            streams.configure(_streaming(config))
            streams.keep_free(min_free(config.cache, free_space(self._store.root)))

        apply(self._config)
        try:
            await watch_config(self._request.config or DEFAULT_CONFIG, [credentials], apply)
        except* OSError as errors:  # the system has no watch left
            log.warning("config_not_watched", error=str(errors.exceptions[0]))

    async def _watch_mount(self, changes: MountChanges) -> None:
        while True:
            await changes.next()
            if not await to_thread.run_sync(self._is_mounted):
                self._end(Ending.UNMOUNTED)
            self._mounts_changed.set()
            self._mounts_changed = anyio.Event()

    def _is_mounted(self) -> bool:
        with self._mounts.lock():  # or we could look between the two steps of a swap
            return bool(self._taken.mounted())

    def _came(self, layer: str) -> None:
        self._missing.discard(layer)
        if not self._missing:
            self._completed.set()

    async def _lazy_view(self, wanted: Wanted, streams: LayerStreams, gate: Gate) -> View | None:
        """The view of a chain that is not complete, mounting what that needs; None if it is by now."""
        native, rest = await to_thread.run_sync(split_chain, self._store, wanted.chain)
        if not rest:
            return None
        if wanted.raw:
            return tree_view(self._store, wanted, gate.mode)
        if gate.mode is Mode.STUB:
            trees = tree_paths(self._store, rest, trees_path(self._store.root, gate.mode))
            return merged(wanted, [*wanted.highest, *native, *trees, *wanted.lowest], turn="lazy")
        layers = [link.layer for link in rest if isinstance(link, LazyLink)]
        for layer in layers:
            await streams.ready(layer)
        parts = [*lower_parts(rest), *map(Directory, wanted.lowest)]
        await to_thread.run_sync(self._uses.add, lazy_id(parts, gate.generation))
        path = await to_thread.run_sync(mount_lazy_lower, self._store.root, parts, gate.generation)
        await self._gates.warm([layer for layer in layers if not self._store.is_complete(layer)])
        return merged(wanted, [*wanted.highest, *native, path], turn="lazy", lazy=True)

    def _mount(self, view: View, kind: MountKind) -> None:
        request = self._request
        with self._mounts.lock():
            check_mountpoint(request.mountpoint)
            if request.rw is not None:
                assert isinstance(view, Overlay), "what is writable is an overlay"
                with mount_failures(f"{request.rw} cannot be an upper directory", request.rw):
                    make_upper(request.rw)
                    if self._taken.made_rw:
                        dress_upper(request.rw, view.lower[0])
            mount_view(view, request.mountpoint, self._keep_ids)
            self._change(kind=kind)
        log.info("mounted", mountpoint=request.mountpoint, source=request.source, kind=kind.value)

    async def _swap(self, view: View) -> None:
        """Swap in place; waits for as long as something is mounted inside, which a swap would take away."""
        while True:
            changed = self._mounts_changed
            try:
                obstacle = await to_thread.run_sync(self._try_swap, view)
            except MounterError as error:
                # Every file is here and native; what is lost is the end of the last indirection.
                log.error("not_swapped", error=str(error))
                self._reporter.tell(Notice(f"{error}; the mount stays as it is, complete"))
                return
            if obstacle is None:
                return
            if obstacle != self._taken.waiting:
                self._change(waiting=obstacle)
                self._reporter.tell(Notice(f"complete; the swap waits for {obstacle} to be unmounted"))
            await changed.wait()

    def _try_swap(self, view: View) -> str | None:
        """Swap, or give the mountpoint that is in the way."""
        target = self._request.mountpoint
        with self._mounts.lock():
            ours = self._taken.mounted()
            if not ours or topmost(target).id not in ours:
                return target
            inside = mounted_inside(target)
            if inside:
                return inside[0]
            beneath = swap_view(view, target, self._keep_ids)
            self._change(kind=MountKind.NATIVE, waiting=None)
        log.info("swapped", mountpoint=target, beneath=beneath)
        if not beneath:
            self._reporter.tell(Notice("this kernel keeps the lazy mount below the native one until umount"))
        return None

    async def _let_go(self) -> None:
        """Nothing is needed any more but the native mount."""
        self._uses.close()
        try:
            await to_thread.run_sync(release_unused, self._store.root)
            await self._gates.leave()
            await to_thread.run_sync(forget_released_lowers, self._store.root)
        except (MounterError, OSError) as error:
            # Whoever comes next finds it unused and tries again.
            log.warning("not_released", error=str(error))

    async def _undo(self) -> None:
        state = self._state
        if state is not None:
            await to_thread.run_sync(self._unmount, state)
        await self._let_go()
        if state is not None:
            unwanted = not self._reporter.kept or self._ending is Ending.INTERRUPTED
            await to_thread.run_sync(partial(remove_files, self._mounts, state, unwanted=unwanted))

    def _unmount(self, state: MountState) -> None:
        try:
            with self._mounts.lock():
                unmount_ours(state, lazy=True)
        except (ManualMountError, MounterError) as error:
            log.error("not_unmounted", mountpoint=state.mountpoint, error=str(error))

    @property
    def _taken(self) -> MountState:
        assert self._state is not None, "nothing was claimed"
        return self._state

    def _keep_ids(self, ids: Sequence[int]) -> None:
        self._change(mounts=list(ids))

    def _change(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._taken, **changes)
        self._mounts.write(self._state)


def _streaming(config: Config) -> Config:
    """[stream] enabled is about serve's layers: a mount that is never complete would be lazy for ever."""
    return msgspec.structs.replace(config, stream=msgspec.structs.replace(config.stream, enabled=True))
