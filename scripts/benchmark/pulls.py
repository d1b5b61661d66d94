"""One cold start: pull, run to the first output, and on until everything is here."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from scripts.benchmark.engines import Engine, Lazy
from scripts.benchmark.group import Memory
from scripts.benchmark.host import drop_page_cache
from scripts.benchmark.link import Link
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.containers import run_to_first_output
from tests.integration import recipe
from tests.integration.harness import call

_SETTLE_SECONDS: Final = 2.0
_IDLE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pull:
    """One run; seconds since the pull was begun, bytes as they came over the link."""

    pulled: float
    """The pull command has returned."""
    first_output: float
    complete: float
    """Every byte is here; for overlayfs the same as `pulled`."""
    bytes_at_first_output: int
    bytes_at_complete: int
    requests_to_first_output: int
    cpu_to_first_output: float
    """Of the engine's group, seconds."""
    cpu_to_complete: float
    peak: Memory
    idle: Memory


def cold_start(engine: Engine, image: PushedImage, link: Link, registry: FarRegistry) -> Pull:
    """Measure `engine`, which has nothing of `image` yet. Raises CommandFailed, TimeoutError, NotNative."""
    settle(registry)
    log_size, received, cpu = registry.log_size, link.received, engine.group.cpu_seconds
    with engine.group.peak_memory() as peak:
        begin = time.monotonic()
        with engine.group.entered():
            call(engine.pull_command(image.reference))
        pulled = time.monotonic() - begin
        first, output = run_to_first_output(
            engine.containerd, image.reference, snapshotter=engine.snapshotter
        )
        first_output = first - begin
        bytes_at_first_output = link.received - received
        cpu_to_first_output = engine.group.cpu_seconds - cpu
        requests = registry.requests_since(log_size)
        engine.wait_until_complete(image)
        complete = time.monotonic() - begin if isinstance(engine, Lazy) else pulled
        cpu_to_complete = engine.group.cpu_seconds - cpu
        bytes_at_complete = link.received - received
    assert output == recipe.OUTPUT, output
    if isinstance(engine, Lazy):
        engine.require_native(image)
        time.sleep(_IDLE_SECONDS)
    return Pull(
        pulled=round(pulled, 3),
        first_output=round(first_output, 3),
        complete=round(complete, 3),
        bytes_at_first_output=bytes_at_first_output,
        bytes_at_complete=bytes_at_complete,
        requests_to_first_output=len(requests),
        cpu_to_first_output=round(cpu_to_first_output, 2),
        cpu_to_complete=round(cpu_to_complete, 2),
        peak=peak[0],
        idle=engine.memory(),
    )


def settle(registry: FarRegistry) -> None:
    """The same beginning for every run: daemons are idle, nothing is cached but what the registry serves."""
    time.sleep(_SETTLE_SECONDS)
    drop_page_cache()
    registry.warm_up()
