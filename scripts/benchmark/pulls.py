"""One cold start: pull, run to the first output, and on until everything is here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.benchmark.engines import Disk, Engine
from scripts.benchmark.group import Group, Memory
from scripts.benchmark.host import busy_share, drop_page_cache
from scripts.benchmark.link import Link
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.containers import first_start, run_to_first_output
from tests.integration.harness import call

_SETTLE_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 5.0
_SAMPLE_SECONDS: Final = 0.02


class WrongOutput(Exception):
    """A container printed something else than its workload does."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a container does, and what it prints."""

    command: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Pull:
    """One run; seconds since the pull was begun, bytes as they came over the link."""

    pulled: float
    """The pull command has returned."""
    first_output: float
    complete: float
    """Every byte is here; for overlayfs the same as `pulled`."""
    on_disk: float
    """And would be after a power loss; the same as `complete` for those that do not see to it."""
    bytes_at_first_output: int
    bytes_at_complete: int
    requests_to_start: list[str]
    """Until the container's process has been started; as "METHOD /path"."""
    requests_to_first_output: list[str]
    cpu_to_first_output: float
    """Of the engine's group, seconds."""
    cpu_to_complete: float
    peak: Memory | None
    """The highest on the way to `on_disk`, if that was watched."""
    idle: Memory
    disk: Disk
    busy_before: float
    """Share of all cores that other work took just before, 0 to 1."""
    timeline: list[tuple[float, int]]
    """Bytes that had come, at seconds."""


def cold_start(
    engine: Engine,
    image: PushedImage,
    workload: Workload,
    link: Link,
    registry: FarRegistry,
    *,
    watch_memory: bool,
) -> Pull:
    """Measure `engine`, which has nothing of `image` yet.

    To watch memory takes a sixth of a core, which the run then lacks. Raises CommandFailed, TimeoutError,
    NotNative, WrongOutput.
    """
    with contextlib.ExitStack() as watched:
        started = watched.enter_context(first_start(engine.containerd))
        busy = settle(registry)
        samples = watched.enter_context(_sampled(engine.group, link, registry))
        peak = watched.enter_context(engine.group.peak_memory()) if watch_memory else [None]
        begin = time.monotonic()
        with engine.group.entered():
            call(engine.pull_command(image.reference), timeout=900)
        pulled = time.monotonic() - begin
        first, output = run_to_first_output(
            engine.containerd, image.reference, workload.command, snapshotter=engine.snapshotter
        )
        engine.wait_until_complete(image)
        complete = time.monotonic() - begin if engine.is_lazy else pulled
        engine.wait_until_on_disk(image)
        on_disk = time.monotonic() - begin if engine.is_lazy else pulled
        start = started()
    if output != workload.output:
        raise WrongOutput(f"{image.reference} on {engine.snapshotter} printed {output!r}")
    engine.check(image)
    if engine.is_lazy:
        time.sleep(_IDLE_SECONDS)
    at_first, at_complete = sample_at(samples, first), sample_at(samples, begin + complete)
    requests = registry.requests(samples[0].log_size, at_first.log_size)
    return Pull(
        pulled=round(pulled, 3),
        first_output=round(first - begin, 3),
        complete=round(complete, 3),
        on_disk=round(on_disk, 3),
        bytes_at_first_output=at_first.received - samples[0].received,
        bytes_at_complete=at_complete.received - samples[0].received,
        requests_to_start=[request.what for request in requests if request.at <= start],
        requests_to_first_output=[request.what for request in requests],
        cpu_to_first_output=round(at_first.cpu - samples[0].cpu, 2),
        cpu_to_complete=round(at_complete.cpu - samples[0].cpu, 2),
        peak=peak[0],
        idle=engine.memory(),
        disk=engine.disk(),
        busy_before=busy,
        timeline=timeline(begin, samples),
    )


def settle(registry: FarRegistry) -> float:
    """The same beginning for every run; how busy other work keeps the machine, 0 to 1.

    Daemons are idle, nothing is cached but what the registry serves.
    """
    drop_page_cache()
    registry.warm_up()
    return busy_share(_SETTLE_SECONDS)


@dataclass(frozen=True, slots=True)
class Sample:
    """What had been used up at a moment (monotonic)."""

    at: float
    received: int
    """Bytes, by the link."""
    log_size: int
    """Of the registry's log."""
    cpu: float
    """Seconds, by the group."""


def sample_at(samples: Sequence[Sample], moment: float) -> Sample:
    """The first sample at or after the moment, the last one if there is none."""
    return next((sample for sample in samples if sample.at >= moment), samples[-1])


def timeline(begin: float, samples: Sequence[Sample]) -> list[tuple[float, int]]:
    """Seconds since `begin` and the bytes since the first sample; of a pause, only its ends."""
    counted = [(round(max(0.0, one.at - begin), 3), one.received - samples[0].received) for one in samples]
    ends = (0, len(counted) - 1)
    return [
        sample
        for number, sample in enumerate(counted)
        if number in ends or not counted[number - 1][1] == sample[1] == counted[number + 1][1]
    ]


@contextlib.contextmanager
def _sampled(group: Group, link: Link, registry: FarRegistry) -> Iterator[list[Sample]]:
    """Samples fifty times a second, from the beginning to the end of what is within."""
    samples: list[Sample] = []
    stop = threading.Event()

    def take() -> None:
        samples.append(Sample(time.monotonic(), link.received, registry.log_size, group.cpu_seconds))

    def watch() -> None:
        while not stop.wait(_SAMPLE_SECONDS):
            take()

    take()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()
        take()
