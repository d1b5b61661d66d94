"""Mounts by hand, on real parts: what is seen while layers stream, at the swap, and after it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from mounter.swap import topmost
from tests import estargz, oci
from tests.integration.harness import Registry, Throttle
from tests.integration.lazy import by_way_of
from tests.integration.manual import MIDDLE, SLOW, ManualNode, small_image, write_layout
from tests.integration.node import eventually
from tests.trees import difference, scan

pytestmark = pytest.mark.containerd

LARGE = b"".join(number.to_bytes(4, "big") for number in range(300_000))


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory, config=SLOW) as node:
        yield node


@pytest.fixture
def layout(node: ManualNode) -> str:
    """The small image as an OCI layout: its SOURCE."""
    return write_layout(f"{node.directory}/layout", small_image())


def finish(node: ManualNode, mountpoint: str) -> None:
    """Let the layers be complete, all their files being here, and wait for the swap."""
    node.kill_workers()
    node.until_native(mountpoint)


class Visitor:
    """A shell whose working directory is in a mount."""

    def __init__(self, directory: str) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> str:
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{command}; echo\n")
        self._shell.stdin.flush()
        return self._shell.stdout.readline().rstrip("\n")

    def leave(self) -> None:
        self._shell.communicate()


@pytest.fixture
def source(request: pytest.FixtureRequest, node: ManualNode, registry: Registry) -> list[str]:
    """SOURCE and the options that go with it, for each kind."""
    image = small_image()
    if request.param == "registry":
        return ["--plain-http", oci.push(registry.host, "manual/small", image)]
    if request.param == "layout":
        return [write_layout(f"{node.directory}/layout", image)]
    path = f"{node.directory}/layer.tar.gz"
    with open(path, "wb") as blob:
        blob.write(estargz.build(MIDDLE, chunk_size=1 << 16).blob)
    return [path]


@pytest.mark.parametrize("writable", [False, True], ids=["ro", "rw"])
@pytest.mark.parametrize("layer", [False, True], ids=["image", "layer"])
@pytest.mark.parametrize("source", ["registry", "layout", "file"], indirect=True)
def test_a_mount_reads_right_while_it_streams_and_is_swapped_in_place(
    node: ManualNode, source: list[str], layer: bool, writable: bool
) -> None:
    target, upper = node.mountpoint(), f"{node.directory}/upper"
    number = "1" if source[-1].endswith(".gz") else "2"
    options = [*(["--layer", number] if layer else []), *(["--rw", upper] if writable else [])]
    said = node.run("mount", *options, *source, target).output
    assert said.startswith(f"{target}: mounted, ")
    assert said.endswith("the rest streams\n")
    state = node.state(target)
    assert (state.state, state.alone, state.rw) == ("lazy", layer, upper if writable else None)
    before = topmost(target)
    assert ("rw" in before.options) is writable

    file, visitor = open(f"{target}/srv/large", "rb"), Visitor(f"{target}/srv")
    with file:
        assert file.read(100) == LARGE[:100]
        if writable:
            os.unlink(f"{target}/etc/empty") if os.path.exists(f"{target}/etc/empty") else None
            written = open(f"{target}/srv/written", "w", encoding="ascii")
            written.write("before")
            written.flush()
            os.chmod(f"{target}/srv/large", 0o600)
        shown = scan(target)
        assert shown["srv/large"].size == len(LARGE)
        assert ("etc/hidden" in shown) is (layer and not writable) or number == "1"
        assert topmost(target) == before, "it is read while it streams"

        finish(node, target)
        assert [mount.id for mount in [topmost(target)]] == node.mount_ids(target)
        native = topmost(target)
        assert native.id != before.id
        plain = f"{node.root}/layers/"
        assert plain in ",".join((native.root, *native.super_options))
        assert difference(shown, scan(target)) == []

        assert file.read() == LARGE[100:]
        assert visitor.ask("head -c 4 large | od -An -tx1 && cd .. && cat srv/../srv/large | wc -c").strip()
        if writable:
            written.write(" and after")
            written.close()
            visitor.ask("echo by a visitor > srv/visited")
            assert open(f"{target}/srv/written", encoding="ascii").read() == "before and after"
            assert open(f"{upper}/srv/visited", encoding="ascii").read() == "by a visitor\n"
    visitor.leave()
    node.until_no_process()
    assert scan(target)["srv/large"] == shown["srv/large"]

    node.run("umount", target)
    assert node.nothing_is_mounted()
    assert node.listed() == []
    assert os.listdir(target) == []
    assert sorted(name for name in os.listdir(node.directory) if name.startswith(".")) == []
    if writable:
        assert open(f"{upper}/srv/written", encoding="ascii").read() == "before and after"


def test_a_layer_alone_shows_whiteouts_and_opaque_directories_as_they_are(
    node: ManualNode, layout: str
) -> None:
    target = node.mountpoint()
    for number, path in (("2", "etc/hidden"), ("3", None)):
        node.run("mount", "--layer", number, layout, target)
        for state in ("lazy", "native"):
            assert node.state(target).state == state
            if path is not None:
                found = os.lstat(f"{target}/{path}")
                assert (found.st_mode & 0o170000, found.st_rdev) == (0o020000, 0)
            else:
                assert os.getxattr(f"{target}/usr/share", "trusted.overlay.opaque") == b"y"
            if state == "lazy":
                scan(target)
                finish(node, target)
        node.run("umount", target)


def test_other_users_may_read_no_more_of_a_lazy_layer_than_of_a_native_one(
    node: ManualNode, layout: str
) -> None:
    target = node.mountpoint()
    for directory in (node.directory, target):
        os.chmod(directory, 0o755)
    node.run("mount", "--layer", "1", layout, target)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat"]
    for state in ("lazy", "native"):
        assert node.state(target).state == state
        assert (
            subprocess.run([*nobody, f"{target}/usr/suid"], check=True, capture_output=True).stdout == b"#!"
        )
        refused = subprocess.run([*nobody, f"{target}/etc/passwd"], check=False, capture_output=True)
        assert b"Permission denied" in refused.stderr
        if state == "lazy":
            scan(target)
            finish(node, target)
    node.run("umount", target)


def test_wait_returns_when_the_mount_is_native(
    node: ManualNode, registry: Registry, throttle: Throttle
) -> None:
    node.configure("")
    reference = by_way_of(throttle, oci.push(registry.host, "manual/small", small_image()))
    throttle.rate = 200_000
    target = node.mountpoint()
    waiting = node.start("mount", "--plain-http", "--wait", reference, target)
    eventually(lambda: node.mount_ids(target), "the mount")
    assert waiting.poll() is None
    assert node.state(target).state == "lazy"
    throttle.rate = 0
    output, errors = waiting.communicate(timeout=100)
    assert (waiting.returncode, output) == (0, f"{target}: mounted, complete\n"), errors
    assert node.processes() == []
    assert node.state(target).state == "native"
    assert open(f"{target}/srv/large", "rb").read() == LARGE


def test_what_is_here_already_is_mounted_natively_at_once(node: ManualNode, layout: str) -> None:
    node.configure("")
    target = node.mountpoint()
    node.run("mount", "--wait", layout, target)
    shown = scan(target)
    node.run("umount", target)
    os.rename(layout.split(":")[1] + "/blobs", f"{node.directory}/away")
    os.makedirs(layout.split(":")[1] + "/blobs/sha256")
    image = small_image()
    for name, data in {image.digest: image.manifest}.items():
        with open(f"{layout.split(':')[1]}/blobs/{name.replace(':', '/')}", "wb") as blob:
            blob.write(data)
    node.run("mount", layout, target, code=3)  # a layout that lacks its layers is no source

    os.rename(f"{node.directory}/away/sha256", f"{node.directory}/sha256")
    os.rmdir(f"{node.directory}/away")
    for name in os.listdir(f"{node.directory}/sha256"):
        os.replace(f"{node.directory}/sha256/{name}", f"{layout.split(':')[1]}/blobs/sha256/{name}")
    assert node.run("mount", layout, target).output == f"{target}: mounted, 3 layers, complete\n"
    assert difference(shown, scan(target)) == []
    node.until_no_process()


def test_two_mounts_of_one_image_fetch_each_layer_once(
    node: ManualNode, registry: Registry, throttle: Throttle
) -> None:
    node.configure("")
    image = small_image()
    reference = by_way_of(throttle, oci.push(registry.host, "manual/small", image))
    throttle.rate = 200_000
    one, other = node.mountpoint("one"), node.mountpoint("other")
    for target in (one, other):
        node.run("mount", "--plain-http", reference, target)
    throttle.rate = 0
    for target in (one, other):
        node.until_native(target)
    node.until_no_process()
    size = sum(len(layer.blob) for layer in image.layers)
    assert throttle.bytes < 1.5 * size + 200_000
    assert difference(scan(one), scan(other)) == []
    node.run("umount", one, other)
    assert node.nothing_is_mounted()
