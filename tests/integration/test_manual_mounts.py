"""Mounts by hand, on real parts: what is seen while layers stream, at the swap, and after it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mounter.swap import topmost
from mounter.syscalls import mount, unmount
from tests import estargz, oci
from tests.estargz import dir, file, whiteout
from tests.integration import recipe
from tests.integration.harness import Containerd, Layergate, Registry, Throttle, call
from tests.integration.image import RealImage
from tests.integration.lazy import by_way_of, until_complete
from tests.integration.manual import (
    LARGE,
    MIDDLE,
    SLOW,
    ManualNode,
    Visitor,
    copy_layout,
    read,
    small_image,
    write_layout,
)
from tests.integration.node import Node, eventually
from tests.trees import difference, scan

pytestmark = pytest.mark.containerd


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory, config=SLOW) as node:
        yield node


@pytest.fixture
def layout(node: ManualNode) -> str:
    """The small image as an OCI layout: its SOURCE."""
    return write_layout(f"{node.directory}/layout", small_image())


def finish(node: ManualNode, mountpoint: str) -> None:
    """Let the layers come, and wait for the swap."""
    node.configure("")
    node.until_native(mountpoint)


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

    with ExitStack() as stack:
        visitor = stack.enter_context(Visitor(f"{target}/srv"))
        file = stack.enter_context(open(f"{target}/srv/large", "rb"))
        assert file.read(100) == LARGE[:100]
        if writable:
            written = stack.enter_context(open(f"{target}/srv/written", "wb", buffering=0))
            written.write(b"before")
            changed = stack.enter_context(open(f"{target}/srv/small", "r+b", buffering=0))
            changed.write(b"B")
            os.unlink(f"{target}/srv/gone")
            os.chmod(f"{target}/srv/large", 0o600)
        shown = scan(target)
        assert shown["srv/large"].size == len(LARGE)
        assert ("srv/gone" in shown) is not writable
        assert ("etc/hidden" in shown) is (layer and not writable), "a whiteout shows where it is one"
        assert topmost(target) == before, "it is read while it streams"

        finish(node, target)
        native = topmost(target)
        assert node.mount_ids(target) == [native.id] != [before.id]
        assert "/layers/" in ",".join((native.root, *native.super_options)), "no gate, no lazy lower"
        assert difference(shown, scan(target)) == []

        assert file.read() == LARGE[100:]
        assert visitor.ask("cat small && cat ../srv/small") == ("BetaBeta" if writable else "betabeta")
        if writable:
            written.write(b" and after")
            changed.write(b"E")
            visitor.ask("printf visited > new")
    node.until_no_process()
    if writable:
        for tree in (target, upper):
            assert read(tree, "srv/written") == b"before and after"
            assert read(tree, "srv/small") == b"BEta"
            assert read(tree, "srv/new") == b"visited"
            assert read(tree, "srv/large") == LARGE
    node.run("umount", target)
    assert node.nothing_is_mounted()
    assert node.listed() == []
    assert os.listdir(target) == []
    assert [name for name in os.listdir(node.directory) if name.startswith(".")] == []
    if writable:
        assert read(upper, "srv/written") == b"before and after"


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
        node.configure(SLOW)


def test_other_users_may_read_no_more_of_a_lazy_layer_than_of_a_native_one(
    node: ManualNode, layout: str
) -> None:
    target = node.mountpoint()
    node.run("mount", "--layer", "1", layout, target)
    for state in ("lazy", "native"):
        assert node.state(target).state == state
        assert as_nobody(target, "usr/suid").stdout == b"#!"
        refused = as_nobody(target, "etc/passwd")
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert b"Permission denied" in refused.stderr
        if state == "lazy":
            finish(node, target)


def as_nobody(directory: str, path: str) -> subprocess.CompletedProcess[bytes]:
    """Another user reads a file; he is in the directory already, whatever the way to it forbids."""
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", path]
    return subprocess.run(command, cwd=directory, check=False, capture_output=True)


def test_a_layer_that_comes_twice_and_a_directory_without_an_entry(node: ManualNode) -> None:
    twice = estargz.build([dir("etc/", mode=0o750), file("etc/own", b"twice"), file("top", b"twice")])
    other = estargz.build([file("etc/other", b"other"), file("top", b"other"), whiteout("etc/own")])
    source = write_layout(f"{node.directory}/layout", oci.image([twice, other, twice]))
    target = node.mountpoint()
    assert node.run("mount", source, target).errors == ""
    shown = scan(target)
    assert {path: read(target, path) for path in ("etc/own", "etc/other", "top")} == {
        "etc/own": b"twice",
        "etc/other": b"other",
        "top": b"twice",
    }
    finish(node, target)
    assert difference(shown, scan(target)) == []
    node.run("umount", target)

    source = write_layout(f"{node.directory}/layout", oci.image([twice, other]))
    assert node.run("mount", source, target).errors == ""
    assert os.stat(f"{target}/etc").st_mode & 0o777 == 0o750, "as it is where it has an entry"


def test_whiteouts_that_hide_nothing_are_not_listed(node: ManualNode) -> None:
    lowest = estargz.build([dir("only/"), file("only/here", b"here"), whiteout("only/gone")])
    source = write_layout(f"{node.directory}/layout", oci.image([lowest, estargz.build([file("other")])]))
    target = node.mountpoint()
    node.run("mount", source, target)
    for state in ("lazy", "native"):
        assert node.state(target).state == state
        assert os.listdir(f"{target}/only") == ["here"]
        assert read(target, "only/here") == b"here"
        if state == "lazy":
            finish(node, target)


def test_what_is_here_already_is_mounted_natively_at_once_and_not_fetched(
    node: ManualNode, registry: Registry, throttle: Throttle
) -> None:
    node.configure("")
    reference = by_way_of(throttle, oci.push(registry.host, "manual/small", small_image()))
    target = node.mountpoint()
    node.run("mount", "--plain-http", "--wait", reference, target)
    shown = scan(target)
    node.run("umount", target)
    fetched = throttle.bytes
    said = node.run("mount", "--plain-http", reference, target).output
    assert said == f"{target}: mounted, 3 layers, complete\n"
    assert throttle.bytes - fetched < 20_000, "the manifest and no layer"
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


def test_layers_are_shared_with_serve_in_both_directions(
    node: ManualNode, registry: Registry, throttle: Throttle
) -> None:
    node.configure("")
    images = [
        oci.image([estargz.build([dir("srv/"), file("srv/own", name)]), *small_image().layers])
        for name in (b"pulled", b"mounted")
    ]
    pulled, mounted = (
        by_way_of(throttle, oci.push(registry.host, f"manual/{name}", image))
        for name, image in zip(("pulled", "mounted"), images, strict=True)
    )
    size = sum(len(layer.blob) for layer in images[0].layers)
    target = node.mountpoint()
    with (
        Layergate(node.directory) as serving,
        Containerd(f"{node.directory}/containerd", snapshotters={"layergate": serving.socket}) as containerd,
    ):
        serving.pull(containerd, pulled)
        until_complete(serving)
        fetched = throttle.bytes
        assert fetched >= size
        node.run("mount", "--plain-http", "--wait", mounted, target)
        assert throttle.bytes - fetched < size / 4, "its lowest layer alone"
        assert read(target, "srv/own") == b"mounted"

        fetched = throttle.bytes
        serving.pull(containerd, mounted)
        with Node(node.directory, serving, containerd, "layergate").mounted(images[1]) as other:
            assert read(other, "srv/own") == b"mounted"
            assert read(other, "srv/large") == LARGE
        assert throttle.bytes - fetched < 50_000, "the manifest and the config"
        node.run("umount", target)


def test_a_retired_mounter_ends_though_a_program_stays_in_what_was_swapped_away(
    node: ManualNode, layout: str
) -> None:
    target = node.mountpoint()
    node.run("mount", layout, target)
    with Visitor(f"{target}/usr") as visitor, open(f"{target}/usr/file7", "rb") as file:
        assert file.read(1) == b"\7"
        finish(node, target)
        node.until_no_process()
        assert visitor.ask("cat file8 | wc -c") == "2008", "opened for the first time after the end"
        assert len(file.read()) == 2006


def test_a_large_file_that_is_read_through_fuse_is_read_on_after_the_swap(
    node: ManualNode, layout: str
) -> None:
    node.configure(f"{SLOW}[mounter]\nlarge_file_seconds = 0.0001\n")
    target = node.mountpoint()
    node.run("mount", layout, target)
    with open(f"{target}/srv/large", "rb") as file:
        assert file.read(100) == LARGE[:100]
        finish(node, target)
        assert file.read() == LARGE[100:]
        assert node.processes(), "the mounter stays for it"
    node.until_no_process()
    assert read(target, "srv/large") == LARGE


@pytest.mark.parametrize("layer", [False, True], ids=["image", "layer"])
def test_where_there_are_no_data_only_layers_trees_are_shown_and_swapped(
    node: ManualNode, layout: str, layer: bool
) -> None:
    node.configure(f'{SLOW}[lazy]\nmode = "stub"\n')
    target = node.mountpoint()
    node.run("mount", *(["--layer", "2"] if layer else []), layout, target)
    shown = scan(target)
    assert node.state(target).state == "lazy"
    finish(node, target)
    assert difference(shown, scan(target)) == []
    node.until_no_process()


def test_the_swap_waits_for_what_is_mounted_inside(node: ManualNode, layout: str) -> None:
    target, upper = node.mountpoint(), f"{node.directory}/upper"
    node.run("mount", "--rw", upper, layout, target)
    before = topmost(target)
    inside = f"{target}/usr/share"
    mount("tmpfs", inside, "tmpfs")
    node.configure("")
    eventually(lambda: node.state(target).waiting == inside, "the obstacle")
    assert (node.state(target).state, topmost(target)) == ("lazy", before)
    unmount(inside)
    node.until_native(target)
    assert read(target, "usr/share/new") == b"the only one"
    node.until_no_process()


def test_an_image_by_skopeo_is_mounted_without_a_network_and_runs(node: ManualNode, image: RealImage) -> None:
    node.configure("")
    layout = f"{node.directory}/copied"
    copy_layout(f"{image.optimized}:optimized", f"{layout}:latest")
    target, upper = node.mountpoint(), f"{node.directory}/upper"
    said = node.run("mount", "--rw", upper, f"oci:{layout}", target, prefix=["unshare", "--net"]).output
    assert said.startswith(f"{target}: mounted, 4 layers")
    program = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "chroot", target, *recipe.COMMAND]
    assert call(program) == recipe.OUTPUT
    shown = scan(target, contents=False)
    node.until_native(target)
    assert difference(shown, scan(target, contents=False), without=["root", "proc", "tmp"]) == []
    assert call(program) == recipe.OUTPUT
    node.until_no_process()
