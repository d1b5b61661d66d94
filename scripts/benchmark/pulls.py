"""One cold start: pull, run to the first output, and on until everything is here."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from scripts.benchmark.engines import Engine, Lazy
from scripts.benchmark.group import Memory
from scripts.benchmark.host import drop_page_cache
from scripts.benchmark.link import Link
from scripts.benchmark.registry import FarRegistry, PushedImage
from tests.integration import recipe
from tests.integration.harness import CommandFailed, call

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
        first_output = run_to_first_output(engine, image.reference) - begin
        bytes_at_first_output = link.received - received
        cpu_to_first_output = engine.group.cpu_seconds - cpu
        requests = registry.requests_since(log_size)
        engine.wait_until_complete(image)
        complete = time.monotonic() - begin if isinstance(engine, Lazy) else pulled
        cpu_to_complete = engine.group.cpu_seconds - cpu
        bytes_at_complete = link.received - received
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
    """The same beginning for every run: nothing cached but what the registry serves."""
    drop_page_cache()
    registry.warm_up()


def run_to_first_output(engine: Engine, reference: str) -> float:
    """Run the image's workload to its end; the monotonic time of its first output. Raises CommandFailed."""
    container = f"bench-{uuid4().hex[:12]}"
    options = ["run", "--rm", "--snapshotter", engine.snapshotter, reference, container]
    command = ["ctr", "--address", engine.containerd.address, *options]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = os.read(process.stdout.fileno(), 4096)
        first = time.monotonic()
        output += process.stdout.read()
    if process.returncode or output.decode() != recipe.OUTPUT:
        raise CommandFailed(command, process.returncode, output.decode(errors="replace"))
    return first
