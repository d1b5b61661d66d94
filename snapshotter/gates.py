"""serve's side of the mounter: started when a lazy lower needs it, watched, started anew if it is gone.

A mounter outlives serve. What its death takes away is only the gate: files that
are here stay readable, and streaming brings the others. A new mounter has a
new gate, so lazy lowers of the old generation are not given out any more.

A manual mount's keeper has a Gates of its own, on the same mounter: whoever
needs it first starts it, and a keeper that leaves retires it if nobody else uses it.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio import to_thread

from fetcher.limits import oom_kills, refused
from fetcher.logs import get_logger
from fetcher.version import VERSION
from mounter.client import Mounter, connect, start_mounter
from mounter.control import PROTOCOL, socket_path
from mounter.control import Status as MounterStatus
from mounter.daemon import LOCK
from mounter.errors import MounterError, MounterRefused, MounterUnreachable
from mounter.lock import is_locked, locked
from mounter.meta import MetaForm
from mounter.probe import Mode, probe
from mounter.settings import MounterSettings
from mounter.swap import mounts_on
from mounter.uses import GATE, Uses, unused
from snapshotter.config import Config
from snapshotter.errors import Unavailable

log = get_logger("layergate.gates")

_WATCH_SECONDS = 5.0
_END_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate that is mounted now; `generation` is its process's."""

    generation: str
    mode: Mode


class Gates:
    """The mounter of one root; belongs to serve's event loop."""

    def __init__(self, root: str, config: Config) -> None:
        self._root = root
        self._settings = config.mounter_settings()
        self._wanted_mode = config.lazy.mode
        self._mode: Mode | None = None
        self._meta_form = MetaForm.TMPFS
        self._mounter: Mounter | None = None
        self._gate: Gate | None = None
        self._lock = anyio.Lock()
        self._uses = Uses(root)
        self._reconfigured = anyio.Event()
        self._oom_kills = 0
        """When the mounter was attached."""

    def configure(self, config: Config) -> None:
        """Take a new configuration; a running mounter gets its part. The mode needs a restart."""
        self._settings = config.mounter_settings()
        self._reconfigured.set()

    async def attach(self) -> None:
        """After a start: find out what this host can do, and take over a mounter of this version."""
        await self.probe_host()
        try:
            await self._use()
            mounter = await to_thread.run_sync(_connect_own_version, self._root)
            await self._take(mounter)
            await to_thread.run_sync(mounter.configure, self._settings)
        except MounterUnreachable:
            self._uses.close()
        except (MounterError, Unavailable) as error:
            log.warning("mounter_not_taken_over", error=str(error))

    async def probe_host(self) -> str:
        """Find out what this host can do; why it cannot do better, "" if there is no better."""
        found = await to_thread.run_sync(probe, self._root)
        self._mode, self._meta_form = found.mode, found.meta
        if self._wanted_mode == "stub" and found.mode is Mode.GATE:
            self._mode = Mode.STUB
        log.info("host_probed", mode=self._mode.value, meta=found.meta.value, reason=found.reason or None)
        return found.reason

    @property
    def attached(self) -> bool:
        """Whether a mounter is in use."""
        return self._mounter is not None

    def meta_form(self) -> MetaForm:
        """What META is a file system of on this host."""
        return self._meta_form

    def possible(self) -> bool:
        """Whether layers can be lazy on this host at all."""
        return self._mode in (Mode.GATE, Mode.STUB)

    async def current(self) -> Gate:
        """The gate, mounted; starts the mounter if none runs. Raises Unavailable."""
        async with self._lock:
            if self._mounter is not None:
                try:  # it may have died since `run` looked after it, and its gate with it
                    await self._take(self._mounter)
                except MounterError as error:
                    self._lose(error)
            if self._gate is None or self._mounter is None:
                await self._start()
            assert self._gate is not None
            return self._gate

    async def prepare(self) -> None:
        """Start the mounter ahead of need; a failure shows when it is needed."""
        try:
            await self.current()
        except Unavailable as error:
            log.warning("mounter_not_started", error=str(error))

    async def expect(self, layer: str) -> None:
        """Have the mounter run and be connected to where `layer` comes from; a failure costs time only."""
        await self.prepare()
        if self._mounter is not None:
            try:
                await to_thread.run_sync(self._mounter.connect, layer)
            except MounterError as error:
                log.warning("mounter_not_connected", error=str(error))

    async def warm(self, layers: list[str]) -> None:
        """Have the trees of layers loaded that are about to be mounted; a failure costs time only."""
        if self._mounter is not None:
            try:
                await to_thread.run_sync(self._mounter.warm, layers)
            except MounterError as error:
                log.warning("mounter_not_warmed", error=str(error))

    async def leave(self) -> None:
        """Use the mounter no more, and retire it if nobody else does. Raises MounterError, OSError.

        It ends when the last container that may need it is gone.
        """
        async with self._lock:
            self._mounter = self._gate = None
            self._uses.close()
            await to_thread.run_sync(retire_unused, self._root)

    async def status(self) -> MounterStatus | None:
        """What the mounter says of itself; None if none runs."""
        if self._mounter is None:
            return None
        try:
            return await to_thread.run_sync(self._mounter.status)
        except MounterError:
            return None

    async def run(self) -> None:
        """Watch the mounter until cancelled: restart one that died, pass on new settings."""
        while True:
            with anyio.move_on_after(_WATCH_SECONDS):
                await self._reconfigured.wait()
            async with self._lock:
                if self._mounter is None:
                    self._reconfigured = anyio.Event()
                    continue
                try:
                    if self._reconfigured.is_set():
                        self._reconfigured = anyio.Event()
                        await to_thread.run_sync(self._mounter.configure, self._settings)
                    await self._take(self._mounter)
                except MounterError as error:
                    self._lose(error)
                    try:
                        await self._start()
                    except Unavailable as unavailable:
                        log.error("mounter_not_restarted", error=str(unavailable))

    async def _start(self) -> None:
        if self._mode not in (Mode.GATE, Mode.STUB):
            raise Unavailable("layers cannot be lazy on this host: see layergate doctor")
        await self._use()
        try:
            await self._take(
                await to_thread.run_sync(_connect_or_start, self._root, self._settings, self._mode)
            )
        except MounterError as error:
            raise Unavailable(f"the mounter cannot be started: {error}") from error
        except OSError as error:
            raise _cannot_start(error) from error

    def _lose(self, error: MounterError) -> None:
        out_of_memory = oom_kills() > self._oom_kills
        reason = "a process was killed for want of memory" if out_of_memory else None
        log.error("mounter_lost", error=str(error), reason=reason)
        self._mounter = self._gate = None

    async def _use(self) -> None:
        """Raises Unavailable."""
        if GATE not in self._uses:
            try:
                await to_thread.run_sync(self._uses.add, GATE)
            except OSError as error:
                raise _cannot_start(error) from error

    async def _take(self, mounter: Mounter) -> None:
        status = await to_thread.run_sync(mounter.status)
        gate = Gate(status.generation, Mode(status.mode))
        if gate != self._gate:
            self._oom_kills = oom_kills()
            log.info("mounter_attached", pid=status.pid, mode=status.mode, generation=status.generation)
        self._mounter, self._gate = mounter, gate


def _cannot_start(error: OSError) -> Unavailable:
    where = f"{error.filename}: " if error.filename else ""
    return Unavailable(f"the mounter cannot be started: {where}{refused(error)}")


def _connect_own_version(root: str) -> Mounter:
    """The mounter that runs, if it is of this version; one of another retires.

    Containers keep the one they have. Raises MounterUnreachable where none is left, MounterRefused.
    """
    mounter = Mounter(root)
    try:
        status = mounter.status()
        if (status.protocol, status.version) == (PROTOCOL, VERSION):
            return mounter
        version = status.version
    except MounterRefused:
        version = "unknown"
    mounter.dismiss()
    log.info("mounter_of_another_version_retired", version=version)
    raise MounterUnreachable(f"the mounter of {root} was of another version")


def _connect_or_start(root: str, settings: MounterSettings, mode: Mode) -> Mounter:
    """The mounter that runs, or a new one; of several processes that try at once, one starts it."""
    with locked(os.path.join(root, "mounter.start")):
        try:
            return connect(root)
        except MounterUnreachable:
            return start_mounter(root, settings, mode)


def retire_unused(root: str) -> None:
    """Retire the mounter, or clear away what a killed one left, if no process uses it.

    Blocking. Raises MounterError, OSError.
    """
    with unused(root, GATE) as free:
        if not free:
            return
        try:
            connect(root).retire()
        except MounterUnreachable:
            if _lives(root):
                raise  # and does not answer
            # Nobody holds the gate, so what is left of it is dead.
            gate = os.path.join(os.path.realpath(root), "gate")
            if mounts_on(gate):
                from mounter.process import clear_gate  # here, as it loads libfuse

                clear_gate(gate)
            with suppress(FileNotFoundError):
                os.unlink(socket_path(root))


def _lives(root: str) -> bool:
    """Whether a mounter is in charge, and not just being ended by the kernel."""
    deadline = time.monotonic() + _END_SECONDS
    while is_locked(os.path.join(root, LOCK)):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False
