"""Very much at once: opens, containers, snapshots; and few descriptors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final

import pytest

from mounter.settings import MounterSettings
from tests import oci
from tests.estargz import file
from tests.integration.caching import DataImage, data, programs
from tests.integration.conftest import directory, file_system, registry
from tests.integration.harness import LAYERGATE, Containerd, Layergate, Registry
from tests.integration.node import Node, running_node
from tests.mounter.conftest import scratch
from tests.mounter.gate_node import GateNode, gate_node, until
from tests.snapshotter.snapshots_client import SnapshotsClient

__all__ = ["directory", "file_system", "gate_node", "registry", "scratch"]

pytestmark = [pytest.mark.containerd, pytest.mark.timeout(300)]

PROCESSES: Final = 50
THREADS: Final = 40
# Each thread reads one file, and ends the process with 1 if it is not what its name says.
READER: Final = """
import hashlib, os, sys, threading
root, paths = sys.argv[1], sys.argv[2:]
wrong = []
def read(path):
    try:
        with open(f"{root}/{path}", "rb") as opened:
            if opened.read() != hashlib.sha512(path.encode()).digest() * 8:
                wrong.append(path)
    except OSError as error:
        wrong.append(f"{path}: {error}")
threads = [threading.Thread(target=read, args=(path,)) for path in paths]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(f"wrong: {wrong}" if wrong else 0)
"""


def content(path: str) -> bytes:
    return hashlib.sha512(path.encode()).digest() * 8


@contextmanager
def reading(node: GateNode, root: str, paths: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process for each list of paths; all have ended when the block has."""
    command = [sys.executable, "-S", "-c", READER, root]
    with ExitStack() as stack:
        readers = [
            stack.enter_context(subprocess.Popen([*command, *some], stderr=subprocess.PIPE, text=True))
            for some in paths
        ]
        try:
            yield readers
        except BaseException:
            node.kill()  # or they would wait for it, whatever they are sent
            raise


def ended(readers: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    said = [reader.communicate()[1] for reader in readers]
    return [(reader.returncode, text) for reader, text in zip(readers, said, strict=True)]


def test_two_thousand_opens_of_missing_files_in_parallel(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=600, neighbour_bytes=0))
    names = [f"d{number % 7}/{number}" for number in range(PROCESSES * THREADS)]
    root = node.container(node.add([file(name, content(name)) for name in names]))
    node.fault("hold")
    with reading(node, root, [names[start::PROCESSES] for start in range(PROCESSES)]) as readers:

        def all_wait() -> bool:
            return node.mounter.status().counters.lookups_file >= len(names)

        until(all_wait, "2,000 opens that wait", patience=200)
        node.mend("hold")
        assert ended(readers) == [(0, "")] * PROCESSES
    counters = node.mounter.status().counters
    assert (counters.fetches, counters.requests, counters.served) == (len(names), len(names), 0)
    # 3 of each walk's turn, 2 of directories, and some more where a turn was given up.
    assert counters.lookups_directory < 50 * len(names)


def test_one_file_from_fifty_processes_is_fetched_once(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=600, neighbour_bytes=0))
    root = node.container(node.add([file("one", content("one"))]))
    node.fault("hold")
    with reading(node, root, [["one"]] * PROCESSES) as readers:
        until(lambda: node.mounter.status().counters.lookups_file >= 1, "an open that waits")
        node.mend("hold")
        assert ended(readers) == [(0, "")] * PROCESSES
    assert node.mounter.status().counters.requests == 1


def make_images(registry: Registry, name: str, count: int) -> dict[str, DataImage]:
    base = programs()
    images = [DataImage.of(base, data(7000 + number, files=10, size=50_000)) for number in range(count)]
    return {
        oci.push(registry.host, f"crowds/{name}-{number}", one.image): one
        for number, one in enumerate(images)
    }


def test_a_hundred_containers_of_ten_images_at_once(registry: Registry, directory: str) -> None:
    images = make_images(registry, "hundred", 10)
    with running_node(directory) as node, ThreadPoolExecutor(100) as threads:

        def run(reference: str) -> str:
            return node.run(reference, images[reference].check)

        for pulled in [threads.submit(node.pull, reference) for reference in images]:
            assert "0.0 MB downloaded" in pulled.result()
        runs = [threads.submit(run, reference) for reference in list(images) * 10]
        assert [one.result() for one in runs] == [""] * 100
        for one in images.values():
            node.until_complete(one.image)


def test_a_thousand_snapshots(directory: str) -> None:
    keys = [f"key-{number}" for number in range(1000)]
    with (
        Layergate(f"{directory}/layergate") as serving,
        SnapshotsClient(serving.socket) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        client.prepare("bottom")
        client.commit("committed", "bottom")
        mounts = list(threads.map(lambda key: client.prepare(key, "committed"), keys))
        assert (
            len({option for mount in mounts for option in mount[0].options if "upperdir" in option}) == 1000
        )
        assert {one.name for one in client.walk()} == {*keys, "committed"}
        list(threads.map(client.remove, keys))
        client.remove("committed")
        assert list(client.walk()) == []
        client.cleanup()
        assert os.listdir(f"{serving.root}/snapshots") == []


def test_with_a_thousand_descriptors_everything_works(registry: Registry, directory: str) -> None:
    images = make_images(registry, "descriptors", 10)
    program = ("prlimit", "--nofile=1000:1000", *LAYERGATE)
    with (
        Layergate(f"{directory}/layergate", program=program) as layergate,
        Containerd(f"{directory}/containerd", snapshotters={"layergate": layergate.socket}) as containerd,
        ThreadPoolExecutor(10) as threads,
    ):
        node = Node(directory, layergate, containerd, "layergate")
        list(threads.map(node.pull, images))
        list(threads.map(lambda reference: node.run(reference, images[reference].check), images))
        for one in images.values():
            node.until_complete(one.image)
        with open(f"/proc/{layergate.pid}/limits", encoding="ascii") as limits:
            assert next(line.split()[3] for line in limits if line.startswith("Max open files")) == "1000"
