"""How long each of very many waits, as Markdown: python -m tests.faults.latencies

Nothing else should run on the machine. What must be right in a crowd is in test_crowds.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import click

from mounter.settings import MounterSettings
from tests.estargz import file
from tests.faults.test_crowds import PROCESSES, THREADS, content, make_images
from tests.integration.harness import Layergate, Registry, fresh_file_system
from tests.integration.node import running_node
from tests.mounter.conftest import scratch_directory
from tests.mounter.gate_node import GateNode
from tests.snapshotter.snapshots_client import SnapshotsClient

_PERCENTILES: Final = (0.5, 0.99, 1.0)


def main() -> None:
    """Print a row for each crowd."""
    click.echo("| what | at once | median | 99 % | longest | all |")
    click.echo("|---|---|---|---|---|---|")
    _opens("files that are missing", [f"d{number % 7}/{number}" for number in range(PROCESSES * THREADS)])
    _opens("one missing file", ["one"] * PROCESSES)
    with (
        tempfile.TemporaryDirectory(prefix="layergate-") as short,
        fresh_file_system(f"{short}/d", size=4 << 30) as disk,
    ):
        _containers(disk)
        _snapshots(f"{disk}/snapshots")


def _opens(of: str, paths: Sequence[str]) -> None:
    with scratch_directory() as scratch, contextlib.closing(GateNode(scratch)) as node:
        node.start(settings=MounterSettings(wait_seconds=600, neighbour_bytes=0))
        root = node.container(node.add([file(name, content(name)) for name in dict.fromkeys(paths)]))

        def read(path: str) -> None:
            with open(f"{root}/{path}", "rb") as opened:
                assert opened.read() == content(path)

        _row(f"opens of {of}", paths, read)


def _containers(directory: str) -> None:
    with Registry(f"{directory}/registry") as registry, running_node(directory) as node:
        images = make_images(registry, "latencies", 10)
        _row("pulls of images", list(images), node.pull)

        def run(reference: str) -> None:
            assert node.run(reference, images[reference].check) == ""

        _row("containers of 10 images, from `ctr run` to the end", list(images) * 10, run)


def _snapshots(directory: str) -> None:
    keys = [f"key-{number}" for number in range(1000)]
    with Layergate(f"{directory}/layergate") as serving, SnapshotsClient(serving.socket) as client:
        client.prepare("bottom")
        client.commit("committed", "bottom")
        _row("snapshots prepared", keys, lambda key: client.prepare(key, "committed"), threads=16)
        _row("snapshots removed", keys, client.remove, threads=16)


def _row(what: str, items: Sequence[str], act: Callable[[str], object], *, threads: int = 0) -> None:
    """Do it for every item at once, or by so many threads."""

    def timed(item: str) -> float:
        since = time.perf_counter()
        act(item)
        return time.perf_counter() - since

    with ThreadPoolExecutor(threads or len(items)) as pool:
        since = time.perf_counter()
        seconds = sorted(pool.map(timed, items))
        every = time.perf_counter() - since
    found = [seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in _PERCENTILES]
    cells = " | ".join(f"{value:.3f} s" for value in (*found, every))
    click.echo(f"| {len(items):,} {what} | {threads or len(items):,} | {cells} |")


if __name__ == "__main__":
    main()
