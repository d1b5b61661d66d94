"""What the commands for mounts by hand say: the result, progress on a terminal and elsewhere, the list."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests import oci
from tests.integration.harness import Registry, Throttle
from tests.integration.lazy import by_way_of
from tests.integration.manual import LARGE, SLOW, ManualNode, read, small_image, write_layout
from tests.integration.node import eventually

pytestmark = pytest.mark.containerd


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory, config=SLOW) as node:
        yield node


@pytest.fixture
def layout(node: ManualNode) -> str:
    """The small image as an OCI layout: its SOURCE."""
    return write_layout(f"{node.directory}/layout", small_image())


def test_wait_returns_when_the_mount_is_native(
    node: ManualNode, registry: Registry, throttle: Throttle
) -> None:
    node.configure("")
    reference = by_way_of(throttle, oci.push(registry.host, "manual/small", small_image()))
    throttle.rate = 200_000
    target = node.mountpoint()
    waiting = node.start("mount", "--plain-http", "--wait", reference, target)
    eventually(lambda: node.mount_ids(target), "the mount")
    eventually(lambda: node.state(target).state == "lazy", "its keeper's word for it")
    assert waiting.poll() is None
    throttle.rate = 0
    output, errors = waiting.communicate(timeout=100)
    assert (waiting.returncode, output) == (0, f"{target}: mounted, complete\n"), errors
    assert node.state(target).state == "native"
    node.until_no_process()
    assert read(target, "srv/large") == LARGE


@pytest.mark.parametrize("way", ["--wait", "--foreground"])
def test_on_a_terminal_there_is_a_bar(node: ManualNode, layout: str, way: str) -> None:
    target = node.mountpoint()
    master, terminal = os.openpty()
    command = node.start("mount", way, layout, target, stderr=terminal)
    os.close(terminal)
    drawn = b""
    with open(master, "rb", buffering=0) as screen, suppress(OSError):  # EIO: nobody has it open any more
        while data := screen.read(1 << 16):
            drawn += data
            if b" files" in drawn:
                node.configure("")
    assert command.communicate(timeout=60)[0] == f"{target}: mounted, complete\n"
    assert command.returncode == 0
    for word in ("607.4 kB", " files", "/s", "-:--:--"):
        assert word.encode() in drawn
    if way == "--wait":
        events = re.findall(r"^timestamp=\S+ level=\S+ event=(\S+)", node.logs(), re.MULTILINE)
        assert {"mounted", "swapped", "ending"} <= set(events)


def test_what_is_mounted_is_listed_for_people_and_programs(node: ManualNode, layout: str) -> None:
    one, other = node.mountpoint("one"), node.mountpoint("other")
    assert node.run("mounts").output == "nothing is mounted by hand\n"
    node.run("mount", layout, one)
    node.run("mount", "--layer", "2", layout, other)
    listed = json.loads(node.run("mounts", "--json").output)["mounts"]
    assert [(mount["mountpoint"], mount["state"], mount["alone"]) for mount in listed] == [
        (one, "lazy", False),
        (other, "lazy", True),
    ]
    digests = [layer.digest for layer in small_image().layers]
    assert [layer["digest"] for layer in listed[0]["layers"]] == digests
    assert listed[1]["bytes_total"] > listed[1]["bytes_done"] >= 0
    shown = node.run("mounts").output
    assert max(map(len, shown.splitlines())) <= 80
    assert digests[1].removeprefix("sha256:")[:12] in shown
    node.run("umount", one, other)
    assert json.loads(node.run("mounts", "--json").output) == {"mounts": []}
