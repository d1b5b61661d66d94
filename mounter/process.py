"""The mounter: the process that holds the FUSE session and fetches on demand.

One a root, guarded by the flock of ROOT/mounter.lock. It mounts ROOT/gate in the mount namespace that it
is started in and serves ROOT/mounter.sock (`mounter.control`). It lives until the kernel drops its FUSE
connection, which is when ROOT/gate is unmounted and the last mount that uses it is gone; or, once it is
retired, until every layer is complete and the kernel knows no file that is read through it.

Containers that run on lazy layers cannot go on without it. So SIGTERM, SIGINT and SIGHUP do what the
request `retire` does: give up mount point, lock and socket, and end by itself when nobody uses the gate
any more, which is at once where nobody does. Only `stop` and SIGKILL end it before. A crash leaves
ROOT/gate mounted and dead, on purpose: whoever would mount a lazy lower on it fails, and does not
take missing files for absent ones; the next mounter clears it away.

Run in a service of systemd's it needs KillMode=process there, or it is killed with the service.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import fcntl
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

import anyio
import pyfuse3
from anyio import to_thread
from anyio.abc import TaskStatus

from fetcher.errors import FetchError
from fetcher.logs import configure_logs, get_logger
from fetcher.stalls import watch_for_stalls
from fetcher.store import LayerStore
from fetcher.version import VERSION
from mounter.blobs import Blobs
from mounter.capabilities import MOUNTER, keep_capabilities
from mounter.control import (
    PROTOCOL,
    Configure,
    Connect,
    Done,
    Reply,
    Request,
    Retire,
    Status,
    StatusRequest,
    Stop,
    Warm,
)
from mounter.counters import Counters
from mounter.daemon import LOCK, READY, allow_many_files, let_many_wait, show_life, spare_from_oom
from mounter.errors import AlreadyRunning, MounterError, MountFailed
from mounter.files import OpenFiles
from mounter.fuse_reads import keep_reads_short
from mounter.gate import Gate
from mounter.handover import Late
from mounter.logfile import LogFile
from mounter.mountinfo import read_mounts
from mounter.ondemand import OnDemand, OpenBlob
from mounter.probe import Mode
from mounter.server import ControlServer
from mounter.settings import MounterSettings
from mounter.stub import Stub
from mounter.syscalls import detach
from mounter.trees import GateWithTrees

log = get_logger("layergate.mounter")

_MAX_TASKS: Final = 4096
"""Requests that may wait at a time. Each has a buffer of 1 MiB, of which a page is touched."""

_OPTIONS: Final = frozenset(
    {"fsname=layergate", "subtype=layergate", "allow_other", "default_permissions", "ro"}
)
_SWITCH_SECONDS: Final = 0.0002
"""How long a thread that inflates may keep the event loop from its next request; Python's own is 5 ms."""
_CLOSE_SECONDS: Final = 5.0
_LOCK_SECONDS: Final = 1.0
"""A retired mounter may hold the lock for a moment, to clear LATE."""
_ADOPT_SECONDS: Final = 60.0
"""How often LATE is searched for links that a retired mounter made."""


class MounterProcess:
    """One mounter, from the lock to the end of the FUSE session."""

    def __init__(
        self,
        root: str,
        mode: Mode,
        settings: MounterSettings,
        *,
        log_file: LogFile | None = None,
        open_blob: OpenBlob | None = None,
    ) -> None:
        self.root = os.path.realpath(root)
        self.mode = mode
        self.generation = secrets.token_hex(8)
        self._settings = settings
        self._log_file = log_file
        self._blobs = Blobs(settings.registry)
        self._open_blob = open_blob or self._blobs.open
        self._gate = os.path.join(self.root, "gate")
        self._counters = Counters()
        self._retired = False
        self._with_trees: GateWithTrees | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until the session ends; `ready` is called when the gate is mounted and the socket answers.

        Raises AlreadyRunning, MountFailed, OSError.
        """
        store = LayerStore(self.root)
        store.create_directories()
        self._lock = _lock(os.path.join(self.root, LOCK), patience=_LOCK_SECONDS)
        show_life(self.root)
        self._tasks = anyio.create_task_group()
        self._server = ControlServer(self.root, self._answer, self._tasks)
        self._ondemand = OnDemand(store, self._open_blob, self._settings, self._tasks, self._counters)
        self._files = OpenFiles(self._ondemand)
        self._late = Late(self.root, self._settings.late_seconds)
        self._left_behind = Late(self.root, self._settings.late_seconds)
        self._mount()
        async with self._tasks:
            self._tasks.start_soon(self._serve_fuse)
            self._tasks.start_soon(self._sweep, store)
            self._tasks.start_soon(watch_for_stalls)
            await self._tasks.start(self._serve_signals)
            await self._tasks.start(self._server.serve)
            await to_thread.run_sync(let_many_wait, self.root, self._gate, _MAX_TASKS)
            log.info("mounted", gate=self._gate, mode=self.mode.value, pid=os.getpid())
            ready()
        while self._retired and not await to_thread.run_sync(self._clear_late):  # noqa: ASYNC110 - a term runs
            await anyio.sleep(min(1.0, self._settings.late_seconds))
        log.info("ended", retired=self._retired)

    def _mount(self) -> None:
        clear_gate(self._gate)
        os.makedirs(self._gate, mode=0o700, exist_ok=True)
        trees = Stub(self._ondemand, self._files)
        if self.mode is Mode.GATE:
            self._with_trees = GateWithTrees(Gate(self._ondemand, self._files, self._late), trees)
        operations = self._with_trees or trees
        try:
            pyfuse3.init(operations, self._gate, set(_OPTIONS))
        except RuntimeError as error:
            raise MountFailed(
                f"cannot mount the gate: {error}", errno=errno.EIO, target=self._gate
            ) from error

    async def _serve_fuse(self) -> None:
        try:
            await pyfuse3.main(max_tasks=_MAX_TASKS)
        finally:
            pyfuse3.close(unmount=False)
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_SECONDS):
                await self._blobs.aclose()
        self._tasks.cancel_scope.cancel()

    async def _sweep(self, store: LayerStore) -> None:
        """Remove what has served its time: links in LATE, trees, half-fetched files, and in the end us."""
        adopting = 0.0
        dispensable = False
        while True:
            try:
                if not self._retired and anyio.current_time() >= adopting:
                    adopting = anyio.current_time() + _ADOPT_SECONDS
                    await to_thread.run_sync(self._late.adopt)
                await to_thread.run_sync(self._clear_late if self._retired else self._late.sweep)
                await self._ondemand.layers.sweep(self._settings.idle_seconds)
                await self._ondemand.waits.flush()
                before, dispensable = dispensable, await to_thread.run_sync(self._is_dispensable, store)
            except (FetchError, OSError) as error:  # what could not be removed now will be tried again
                log.warning("not_swept", error=str(error))
                before = False
            if before and dispensable:
                log.info("dispensable")
                self._tasks.cancel_scope.cancel()
            await anyio.sleep(min(1.0, self._settings.late_seconds))

    def _clear_late(self) -> bool:
        """Being retired, look after LATE where no other mounter does; whether there is nothing left to do."""
        if not os.listdir(os.path.join(self.root, "late")):
            return True
        try:
            lock = _lock(os.path.join(self.root, LOCK))
        except AlreadyRunning:
            return True
        try:
            self._left_behind.adopt()
            self._left_behind.sweep()
            return not len(self._left_behind)
        finally:
            os.close(lock)

    def _is_dispensable(self, store: LayerStore) -> bool:
        """Whether nobody can miss us, though the kernel has the gate mounted for somebody still.

        That is a program with an open file or its working directory in a mount that was taken away. Being
        retired, we get no new mount; and where every layer is complete, PLAIN has all files.
        """
        if not self._retired or self._with_trees is None or not self._with_trees.is_dispensable:
            return False
        return all(map(store.is_complete, store.layers()))

    async def _serve_signals(self, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                log.info("signal", number=int(number))
                try:
                    await self._retire()
                except OSError as error:  # whoever sent it may send another
                    log.error("not_retired", error=str(error))

    async def _answer(self, request: Request) -> Reply:
        match request:
            case StatusRequest():
                return self._status()
            case Configure(settings):
                self._configure(settings)
            case Warm(layers):
                for layer in layers:
                    self._tasks.start_soon(self._warm, layer)
            case Connect(layer):
                self._tasks.start_soon(self._connect, layer)
            case Retire():
                await self._retire()
            case Stop():
                log.info("stopping")
                await to_thread.run_sync(clear_gate, self._gate)
                self._server.close()
                self._tasks.cancel_scope.cancel()
        return Done()

    async def _warm(self, layer: str) -> None:
        try:
            await self._ondemand.layers.get(layer)
        except FetchError as error:
            log.warning("not_warmed", layer=layer, error=str(error))
        except Exception:
            # A defect met by one layer must not take the mount away from every container.
            log.exception("not_warmed", layer=layer)

    async def _connect(self, layer: str) -> None:
        try:
            await self._blobs.connect(await to_thread.run_sync(LayerStore(self.root).record, layer))
        except FetchError as error:  # whoever needs it will say so more loudly
            log.info("not_connected", layer=layer, error=str(error))
        except Exception:
            # As above; and a registry has much to say that nobody foresaw.
            log.exception("not_connected", layer=layer)

    def _configure(self, settings: MounterSettings) -> None:
        self._settings = settings
        self._ondemand.configure(settings)
        self._blobs.configure(settings.registry)
        self._late.hold_seconds = settings.late_seconds
        if self._log_file is not None:
            self._log_file.limit = settings.log_limit
        log.info("configured")

    async def _retire(self) -> None:
        if self._retired:
            return
        self._retired = True
        log.info("retiring")
        try:
            await to_thread.run_sync(self._late.retire)
            self._server.close()
            await to_thread.run_sync(clear_gate, self._gate)
        except OSError:
            self._retired = False
            raise
        os.close(self._lock)

    def _status(self) -> Status:
        ondemand = self._ondemand
        return Status(
            protocol=PROTOCOL,
            pid=os.getpid(),
            version=VERSION,
            generation=self.generation,
            mode=self.mode.value,
            resident_bytes=_resident_bytes(),
            in_flight=ondemand.in_flight,
            open_files=len(self._files),
            loaded_layers=len(ondemand.layers),
            partial_files=ondemand.layers.partial_files(),
            late_links=len(self._late),
            bandwidth=ondemand.link.bandwidth,
            round_trip=ondemand.link.round_trip,
            counters=self._counters,
            latency=ondemand.latency.snapshot(),
        )


def clear_gate(path: str) -> None:
    """Detach whatever FUSE mount of ours is on `path`, alive or left dead by a mounter that was killed.

    The directory goes with it: nothing can be mounted over no gate at all then, and the copies of the mount
    that mount namespaces have which do not get our events go, too, and keep no mounter alive. Raises OSError.
    """
    while any(mount.target == path and mount.fstype.startswith("fuse") for mount in read_mounts()):
        detach(path)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError as error:  # something of somebody else's is on it, or the disk is read-only
        log.info("gate_directory_stays", error=str(error))


def _lock(path: str, *, patience: float = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            os.close(fd)
            raise AlreadyRunning(f"another mounter holds {path}") from None
        return fd


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def serve(
    root: str,
    mode: Mode,
    settings: MounterSettings,
    *,
    ready: Callable[[], None],
    open_blob: OpenBlob | None = None,
) -> None:
    """Run a mounter in this process, which it takes over: log, standard output, signals.

    Raises MounterError, OSError.
    """
    os.makedirs(root, mode=0o700, exist_ok=True)
    os.umask(0o022)
    os.chdir("/")
    log_file = LogFile(os.path.join(root, "mounter.log"), settings.log_limit)
    configure_logs("info", stream=log_file)
    faulthandler.enable()  # to standard error, which is the log by now
    spare_from_oom()
    allow_many_files()
    keep_capabilities(MOUNTER)
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_reads_short()
    process = MounterProcess(root, mode, settings, log_file=log_file, open_blob=open_blob)
    anyio.run(process.run, ready, backend="trio")


def run_and_report(root: str, mode: Mode, settings: MounterSettings, starter: Connection) -> None:
    """`serve` in a process that was forked for it; the starter hears READY, or why not."""

    def report(text: str) -> None:
        if not starter.closed:
            with starter, contextlib.suppress(OSError):  # the starter is dead: so much the more are we needed
                starter.send_bytes(text.encode(errors="replace"))

    try:
        serve(root, mode, settings, ready=lambda: report(READY))
    except (MounterError, OSError) as error:
        log.error("not_started", error=str(error))
        report(str(error))
    except Exception as defect:
        # Nobody but the log is told: by now the starter has gone its way.
        log.exception("crashed")
        report(repr(defect))
