"""A mount by hand that is killed, or interrupted, at any moment: nothing is left of it.

LAYERGATE_MOMENTS says how many moments are tried of each. The seed is printed; LAYERGATE_MOMENTS_SEED
repeats a run as far as its decisions go.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import pytest

from mounter.swap import mounts_on
from tests.integration.manual import ManualNode, small_image, write_layout
from tests.integration.node import eventually

MOMENTS: Final = int(os.environ.get("LAYERGATE_MOMENTS", "4"))
SEED: Final = int(os.environ.get("LAYERGATE_MOMENTS_SEED", "0")) or random.SystemRandom().getrandbits(32)

pytestmark = [pytest.mark.containerd, pytest.mark.timeout(120 + 30 * MOMENTS)]

FILES: Final = {
    "demand",
    "forks/lock",
    "layers.lock",
    "lazy/lock",
    "metadata.db",
    "metadata.db.lock",
    "mounter.alive",
    "mounter.lock",
    "mounter.log",
    "mounter.start",
    "mounts/lock",
}
"""What a root has though nothing is in its cache, and nothing mounted."""


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory) as node:
        yield node


@pytest.fixture
def layout(node: ManualNode) -> str:
    """The small image as an OCI layout: its SOURCE."""
    return write_layout(f"{node.directory}/layout", small_image())


@pytest.fixture
def whole(node: ManualNode, layout: str) -> float:
    """How long a mount takes from its beginning to its end, in seconds: moments are chosen from that."""
    begun = time.monotonic()
    node.run("mount", "--wait", layout, node.mountpoint())
    node.until_no_process()
    taken = time.monotonic() - begun
    node.run("umount", node.mountpoint())
    node.run("cache", "clean", "--all")
    assert left(node) == []
    return taken


def left(node: ManualNode) -> list[str]:
    """What is on the disk that has no business there."""
    found = []
    for directory, names, files in os.walk(node.root):
        inside = os.path.relpath(directory, node.root)
        names[:] = [name for name in names if name != "records"]  # what was waited for is kept for a purpose
        found += [os.path.normpath(os.path.join(inside, name)) for name in files]
        if inside in ("layers", "late", "lazy", "meta", "snapshots"):
            found += [os.path.join(inside, name) for name in names]
    return sorted(set(found) - FILES)


def until_clean(node: ManualNode) -> None:
    """Clean; again if need be: a process that is ending has no name, and may hold its locks for a moment."""
    said: list[str] = []

    def look() -> bool:
        said[:] = [
            node.run("cache", "clean").output,
            node.run("cache", "ls", "--json").output,
            *left(node)[:5],
        ]
        return not said[2:]

    try:
        eventually(look, "an empty disk", patience=20)
    except AssertionError:
        pytest.fail("\n".join(said))


def options_of(node: ManualNode, rng: random.Random) -> list[str]:
    return rng.choice([[], ["--layer", "2"], ["--rw", f"{node.directory}/upper"]])


def test_a_kill_of_everything(node: ManualNode, layout: str, whole: float) -> None:
    rng = random.Random(f"{SEED} kill")
    for _ in range(MOMENTS):
        moment, options, target = rng.uniform(0.1, 1) * whole, options_of(node, rng), node.mountpoint()
        order = rng.choice([["clean", "umount"], ["umount", "clean"], ["clean", "umount(8)", "clean"]])
        print(f"seed {SEED}: {options}, {order}, after {moment:.3f} s")  # noqa: T201
        node.start("mount", *options, layout, target)
        time.sleep(moment)
        node.kill_everything()
        mounted = mounts_on(target)
        if any(one.state == "native" for one in node.listed()):
            order = [*order, "clean"]  # it was done; its layers stay in the cache with good reason
        for step in order:
            if step == "clean":
                node.run("cache", "clean")
                assert mounts_on(target) == mounted, "a mount is nothing that a cleaning takes away"
            elif step == "umount":
                node.run("umount", target, code=0 if node.listed() else None)
                mounted = []
            else:
                while mounts_on(target):
                    subprocess.run(["umount", target], check=True)
                mounted = []
        assert node.nothing_is_mounted()
        assert left(node) == []
        assert [name for name in os.listdir(node.directory) if name.startswith(".")] == []
    node.run("mount", "--wait", layout, target)


def test_an_interrupt(node: ManualNode, layout: str, whole: float) -> None:
    rng = random.Random(f"{SEED} interrupt")
    for _ in range(MOMENTS):
        moment, options, target = rng.uniform(0.1, 1) * whole, options_of(node, rng), node.mountpoint()
        way, times = rng.choice([[], ["--wait"], ["--foreground"]]), rng.choice([1, 1, 2])
        print(f"seed {SEED}: {way}, {options}, {times} times after {moment:.3f} s")  # noqa: T201
        command = node.start("mount", *way, *options, layout, target, prefix=["setsid"])
        time.sleep(moment)
        for _ in range(times):
            # As the terminal does it: to the whole foreground process group.
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGINT)
        output, errors = command.communicate(timeout=60)
        if command.returncode == 0:
            assert mounts_on(target), "it was done before that"
            assert "mounted" in output
            node.run("umount", target)
        else:
            # While its first modules load it ends as any Python program does.
            assert command.returncode in (130, -signal.SIGINT), errors
            assert command.returncode == -signal.SIGINT or errors.strip() == "layergate: interrupted"
            assert output == ""
            assert mounts_on(target) == [], "when the command has ended, the mount is gone"
        node.until_no_process()
        assert node.listed() == []
        assert node.nothing_is_mounted()
        assert not os.path.exists(f"{node.root}/mounts") or os.listdir(f"{node.root}/mounts") in (
            [],
            ["lock"],
        )
        assert not [name for name in os.listdir(node.directory) if name.startswith(".")]
        until_clean(node)
