"""One run of an image by runc alone, watched: what it opened, and which parts of large files it read.

    DIRECTORY/lower         the image's root file system, which stays as it is
              upper, work   what the container writes
              root          the overlay of both: the container's root, which is watched
              bundle        config.json
              runc          runc's state

The overlay is marked before the container is made. The run ends when the container does, when a line on its
output has what was waited for, or after a time; whatever runs then is killed. Leaving takes the container,
its cgroup and the mount away, however it comes about.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.lowlevel
from anyio import CancelScope, to_thread
from anyio.abc import ByteReceiveStream, Process

from fetcher.logs import get_logger
from fetcher.record import VERSION, Header, OpenedFile, Record
from mounter.errors import mount_failures
from mounter.fanotify import OpenRecorder
from mounter.syscalls import detach, mount_overlay
from snapshotter.optimize.errors import SandboxRefused
from snapshotter.optimize.residency import LARGE, forget_large_files, resident_ranges
from snapshotter.optimize.scratch import Scratch

log = get_logger("layergate.optimize")

_LINE_LIMIT: Final = 64 << 10
"""Bytes of output that are searched together."""
_SAID_LIMIT: Final = 2000
_KILL_SECONDS: Final = 2.0


class Ending(enum.Enum):
    """Why a run ended."""

    BY_ITSELF = "ended by itself"
    LINE = "wrote the line that was waited for"
    PERIOD = "was ended after its time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How to run; `period` in seconds, `line` is part of a line that the container writes."""

    spec: dict[str, object]
    period: float
    line: str | None = None
    output: Callable[[bytes], object] = lambda data: None
    """Takes what the container writes, as it comes."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run was: how it ended, with which exit status if by itself, after how many seconds."""

    ending: Ending
    status: int | None
    seconds: float
    files: tuple[OpenedFile, ...]
    lost: bool
    """Whether it opened more than could be recorded."""
    said: str
    """The end of its output, for who has to say that it failed."""


def make_lower(scratch: Scratch) -> str:
    """The directory that the image's root file system is to be unpacked into."""
    path = os.path.join(scratch.directory, "lower")
    os.mkdir(path, 0o755)
    return path


async def run_sandbox(scratch: Scratch, run: Run) -> Ran:
    """Run the container on what `make_lower`'s directory holds.

    Raises SandboxRefused, MountFailed, OSError.
    """
    sandbox = _Sandbox(scratch, run)
    with sandbox.mounted() as target:
        if scratch.tells_reads:
            await to_thread.run_sync(forget_large_files, sandbox.lower)
        with contextlib.closing(OpenRecorder(target)) as recorder:
            ending, status, seconds = await sandbox.run(recorder)
            while recorder.take():
                pass
            files = [OpenedFile(path, at) for path, at in recorder.opens.items()]
        if scratch.tells_reads:
            files = await to_thread.run_sync(sandbox.with_ranges, files)
    return Ran(ending, status, seconds, tuple(files), recorder.lost or recorder.full, sandbox.said)


def record_of(ran: Ran, *, image: str, command: list[str], started: float) -> Record:
    """What a run is kept as."""
    header = Header(
        layergate_record=VERSION,
        image=image,
        command=command,
        started=round(started, 3),
        seconds=round(ran.seconds, 3),
        incomplete=ran.lost,
    )
    return Record(header, ran.files)


async def _follow(recorder: OpenRecorder) -> None:
    while not recorder.full:
        await anyio.wait_readable(recorder.fileno())
        while recorder.take():
            await anyio.lowlevel.checkpoint()


class _Sandbox:
    def __init__(self, scratch: Scratch, run: Run) -> None:
        self._directory = scratch.directory
        self._run = run
        self._id = f"layergate-optimize-{secrets.token_hex(6)}"
        self._found = anyio.Event()
        self._tail = b""

    @property
    def lower(self) -> str:
        return os.path.join(os.path.realpath(self._directory), "lower")

    @property
    def _pid_file(self) -> str:
        """Written by runc once the container runs."""
        return os.path.join(self._directory, "pid")

    @property
    def said(self) -> str:
        return self._tail.decode(errors="replace").strip()

    @contextlib.contextmanager
    def mounted(self) -> Iterator[str]:
        """The container's root, mounted for the time of the block. Raises MountFailed, OSError."""
        target, upper, work = (os.path.join(self._directory, name) for name in ("root", "upper", "work"))
        for path in (target, upper, work):
            os.mkdir(path, 0o755)
        bundle = os.path.join(self._directory, "bundle")
        os.mkdir(bundle)
        spec = {**self._run.spec, "root": {"path": target}}
        with open(os.path.join(bundle, "config.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file)
        with mount_failures("the sandbox's root cannot be mounted", target):
            mount_overlay(
                target, lower=[self.lower], options={"upperdir": upper, "workdir": work}, read_only=False
            )
        try:
            yield target
        finally:
            detach(target)

    async def run(self, recorder: OpenRecorder) -> tuple[Ending, int | None, float]:
        """Run to the end, whichever comes first. Raises SandboxRefused."""
        begun = anyio.current_time()
        async with self._container() as process:
            ending = Ending.PERIOD
            with anyio.move_on_after(self._run.period):
                async with anyio.create_task_group() as tasks:

                    async def until_line() -> None:
                        nonlocal ending
                        await self._found.wait()
                        ending = Ending.LINE
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(until_line)
                    tasks.start_soon(_follow, recorder)
                    await self._pump(process)
                    await process.wait()
                    ending = Ending.BY_ITSELF
                    tasks.cancel_scope.cancel()
            status = process.returncode if ending is Ending.BY_ITSELF else None
        if not await to_thread.run_sync(os.path.exists, self._pid_file):
            raise SandboxRefused(f"runc did not start the container: {self.said[-_SAID_LIMIT:]}")
        return ending, status, anyio.current_time() - begun

    def with_ranges(self, files: list[OpenedFile]) -> list[OpenedFile]:
        """The files with what is resident of the large ones."""
        found = []
        for file in files:
            path = os.path.join(self.lower, file.path)
            try:
                # By no symlink: where the container put something else, it may lead to the host's files.
                ours = os.path.realpath(path) == path and os.path.getsize(path) >= LARGE
                ranges = resident_ranges(path) if ours else None
            except OSError:  # made by the container, or gone: not the image's
                ranges = None
            found.append(OpenedFile(file.path, file.at, ranges) if ranges is not None else file)
        return found

    @contextlib.asynccontextmanager
    async def _container(self) -> AsyncIterator[Process]:
        """The container, started; killed and forgotten at the end of the block."""
        bundle = os.path.join(self._directory, "bundle")
        command = self._runc("run", "--bundle", bundle, "--pid-file", self._pid_file, self._id)
        try:
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise SandboxRefused("there is no program runc, which runs the sandbox") from None
        try:
            yield process
        finally:
            with CancelScope(shield=True):
                await self._end(process)

    async def _end(self, process: Process) -> None:
        for _ in range(2):
            # The first one may come before runc has made the container.
            await self._call("delete", "--force", self._id)
            if process.returncode is None:
                with anyio.move_on_after(_KILL_SECONDS):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
            await self._call("delete", "--force", self._id)
        await process.aclose()

    async def _pump(self, process: Process) -> None:
        assert isinstance(process.stdout, ByteReceiveStream)
        async for data in process.stdout:
            self._run.output(data)
            self._tail = (self._tail + data)[-_LINE_LIMIT:]
            if self._run.line is not None and self._run.line.encode() in self._tail:
                self._found.set()

    async def _call(self, *arguments: str) -> None:
        done = await anyio.run_process(
            self._runc(*arguments),
            check=False,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, and it is what undoes
        )
        if done.returncode:
            log.debug("runc", arguments=" ".join(arguments), said=done.stdout.decode(errors="replace"))

    def _runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", os.path.join(self._directory, "runc"), *arguments]
