"""Our processes are killed while layers stream: no container notices, and no byte is fetched again."""

from __future__ import annotations

import errno
import os

import pytest

from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import (
    NATIVE,
    ONE_STREAM,
    by_way_of,
    image_files,
    incomplete,
    lowerdirs,
    plain_directories,
    read_layout,
    snapshots,
    status,
    until,
    until_complete,
    until_half_is_here,
    until_prefetched,
)
from tests.integration.node import ON_DEMAND, running_node
from tests.integration.reader import reading

pytestmark = pytest.mark.containerd


def test_serve_is_killed_while_layers_stream(
    image: RealImage, references: References, throttle: Throttle, directory: str
) -> None:
    layout = read_layout(image.optimized)
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 12_000_000
    with running_node(directory, config=ONE_STREAM) as node:
        layergate = node.layergate
        node.pull(reference)
        with reading(node, reference, "/usr/lib/python3.11/encodings", "/usr/bin") as reader:
            known = snapshots(node)
            assert len(known) == 5
            until_half_is_here(layergate, layout)
            throttle.rate = 4_000_000
            mounter = layergate.mounter_pid
            layergate.kill9()
            until(lambda: layergate.descendants == [mounter], "the workers to end")
            assert throttle.bytes < 0.95 * layout.size
            reader.until_another_round()

            node.start_again()
            assert layergate.mounter_pid == mounter
            assert snapshots(node) == known
            assert incomplete(layergate)
            throttle.rate = 0
            until_complete(layergate)
            reader.until_another_round()
            assert reader.errors == ""
            assert reader.files > 300
            with node.containerd.container(reference, snapshotter=node.name) as fresh:
                assert set(lowerdirs(fresh)) == plain_directories(layergate)
                assert fresh.execute(*recipe.COMMAND) == recipe.OUTPUT
        # What was fetched on demand may lie in the midst of what is streamed.
        on_demand = status(layergate).fetched_bytes.on_demand
        assert throttle.bytes < 1.1 * layout.size + on_demand


def test_the_mounter_is_killed(references: References, directory: str, image: RealImage) -> None:
    reference = references.optimized
    with running_node(directory, config=ON_DEMAND) as node:
        layergate = node.layergate
        node.pull(reference)
        until_prefetched(layergate)
        files = image_files(layergate, read_layout(image.optimized))
        here = [f"/{file.path}" for file in files if file.here][:300]
        missing, another = [file for file in files if file.size < 4096 and not file.here][:2]
        with reading(node, reference, *here) as reader:
            reader.until_another_round()
            root = reader.root
            killed = status(layergate).mounter
            assert killed is not None
            layergate.kill9_mounter()
            # What is not here cannot be had now; it must not seem absent.
            assert refusal(f"{root}/{missing.path}") not in (None, errno.ENOENT)
            assert os.path.getsize(f"{root}/{missing.path}") == missing.size

            # A new container finds a mounter that lives, before serve has looked after the old one.
            with node.containerd.container(reference, snapshotter=node.name) as fresh:
                with open(f"{fresh.root}/{another.path}", "rb") as opened:
                    content = opened.read()
                with open(another.plain, "rb") as plain:
                    assert plain.read() == content
                assert fresh.execute(*recipe.COMMAND) == recipe.OUTPUT
            restarted = status(layergate).mounter
            assert restarted is not None
            assert restarted.generation != killed.generation
            reader.until_another_round()

            # Streaming heals the container that stands on the dead gate.
            node.configure("")
            until_complete(layergate)
            for file in (missing, another):
                with open(f"{root}/{file.path}", "rb") as healed, open(file.plain, "rb") as plain:
                    assert healed.read() == plain.read()
            reader.until_another_round()
            assert reader.errors == ""
            assert reader.files == len(here)


def refusal(path: str) -> int | None:
    """The error number with which a file cannot be opened; None if it can be."""
    try:
        with open(path, "rb"):
            return None
    except OSError as error:
        return error.errno


def test_both_are_killed(references: References, throttle: Throttle, directory: str) -> None:
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 6_000_000
    with running_node(directory, config=NATIVE) as node:
        layergate = node.layergate
        node.pull(reference)
        with node.containerd.container(reference, snapshotter=node.name) as before:
            assert before.execute(*recipe.COMMAND) == recipe.OUTPUT
            assert incomplete(layergate)
            layergate.kill9()
            layergate.kill9_mounter()
            assert before.execute(*recipe.COMMAND) == recipe.OUTPUT
            node.start_again()
            with node.containerd.container(reference, snapshotter=node.name) as after:
                assert after.execute(*recipe.COMMAND) == recipe.OUTPUT
            throttle.rate = 0
            until_complete(layergate)
            assert before.execute("python3", "-c", "import pandas; print(pandas.__version__)") == "2.2.2\n"
