"""What demo and benchmarks do with containers beyond the tests' harness."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from uuid import uuid4

from tests.integration.harness import CommandFailed, Container, Containerd, mounts


def run_to_first_output(
    containerd: Containerd, image: str, command: Sequence[str] = (), *, snapshotter: str
) -> tuple[float, str]:
    """Run a container to its end and remove it: when its first output came (monotonic), and all of it.

    `command` is the image's own by default. Raises CommandFailed.
    """
    options = ["run", "--rm", "--snapshotter", snapshotter, image, f"run-{uuid4().hex[:12]}", *command]
    ctr = ["ctr", "--address", containerd.address, *options]
    with subprocess.Popen(
        ctr, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        output = os.read(process.stdout.fileno(), 4096)
        first = time.monotonic()
        output += process.stdout.read()
        errors = process.stderr.read()
    if process.returncode or not output:
        raise CommandFailed(ctr, process.returncode, (output + errors).decode(errors="replace"))
    return first, output.decode(errors="replace")


@contextlib.contextmanager
def first_start(containerd: Containerd) -> Iterator[Callable[[], float]]:
    """When the first container's process has been started within: seconds since 1970, by containerd's event.

    Raises LookupError if none was.
    """
    ctr = ["ctr", "--address", containerd.address, "events", 'topic=="/tasks/start"']
    with subprocess.Popen(ctr, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout

        def moment() -> float:
            process.terminate()
            line = lines.readline()
            if not line:
                raise LookupError("containerd has told of no container that was started")
            day, time_of_day, zone, *_ = line.split()
            return datetime.fromisoformat(f"{day} {time_of_day[:15]}{zone}").timestamp()

        try:
            yield moment
        finally:
            process.terminate()


def lowerdirs(containerd: Containerd, container: Container) -> list[str]:
    """The directories that the container's root stands on, the uppermost first."""
    (mount,) = (
        mount
        for mount in mounts(containerd.directory)
        if mount.type == "overlay" and mount.target.endswith(f"/{container.name}/rootfs")
    )
    (lowers,) = (
        option.removeprefix("lowerdir=")
        for option in mount.options.split(",")
        if option.startswith("lowerdir=")
    )
    return lowers.split(":")
