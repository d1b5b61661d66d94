"""How mounts by hand end that do not go as planned: one clear line, and nothing is left."""

from __future__ import annotations

import gzip
import os
import signal
import time
from collections.abc import Iterator

import pytest

from mounter.lock import locked
from mounter.swap import mounts_on
from mounter.syscalls import mount, unmount
from tests import estargz, oci
from tests.estargz import file
from tests.integration.harness import Registry, Throttle
from tests.integration.lazy import by_way_of
from tests.integration.manual import BOTTOM, SLOW, ManualNode, Visitor, read, small_image, write_layout
from tests.integration.node import eventually
from tests.integration.processes import send

pytestmark = pytest.mark.containerd


@pytest.fixture
def node(directory: str) -> Iterator[ManualNode]:
    with ManualNode(directory, config=SLOW) as node:
        yield node


@pytest.fixture
def layout(node: ManualNode) -> str:
    """The small image as an OCI layout: its SOURCE."""
    return write_layout(f"{node.directory}/layout", small_image())


def refused(node: ManualNode, code: int, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """What a command says that ends with `code` and leaves nothing behind."""
    ended = node.run("mount", *arguments, prefix=prefix, code=code)
    assert ended.output == ""
    assert ended.errors.startswith("layergate: ")
    assert ended.errors.count("\n") == 1, "one line"
    assert nothing_is_left(node)
    return ended.errors.strip().removeprefix("layergate: ")


def nothing_is_left(node: ManualNode) -> bool:
    node.until_no_process()
    assert node.listed() == []
    states = f"{node.root}/mounts"
    assert not os.path.exists(states) or os.listdir(states) in ([], ["lock"])
    return node.nothing_is_mounted()


def waits_for_a_lock(pid: int) -> bool:
    with open("/proc/locks", encoding="ascii") as file:
        return any("->" in line and f" {pid} " in line for line in file)


class TestRefusals:
    """Each has an exit code of its own."""

    def test_a_mountpoint_that_does_not_exist_or_is_no_directory(self, node: ManualNode, layout: str) -> None:
        assert refused(node, 10, layout, "/nowhere") == "there is no directory /nowhere"
        path = f"{node.directory}/config.toml"
        assert refused(node, 10, layout, path) == f"{path} is no directory"
        assert "cannot be an upper directory" in refused(
            node, 10, "--rw", "/nowhere/upper", layout, node.mountpoint()
        )

    def test_a_mountpoint_that_is_not_empty(self, node: ManualNode, layout: str) -> None:
        assert refused(node, 11, layout, f"{node.directory}/layout/blobs").endswith(
            "is not empty: it has 'sha256', which would be hidden"
        )

    def test_a_mountpoint_that_is_mounted_already(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        mount("tmpfs", target, "tmpfs")
        ended = node.run("mount", layout, target, code=12)
        assert ended.errors == f"layergate: something is mounted on {target} already\n"
        unmount(target)
        assert nothing_is_left(node)

    def test_an_upper_directory_that_is_in_use(self, node: ManualNode, layout: str) -> None:
        target, other, upper = node.mountpoint(), node.mountpoint("other"), f"{node.directory}/upper"
        node.run("mount", "--rw", upper, layout, target)
        said = node.run("mount", "--rw", upper, layout, other, code=12).errors
        assert said == f"layergate: {upper} is the upper directory of {target}\n"
        assert mounts_on(other) == []
        node.run("umount", target)
        assert "in each other" in refused(node, 12, "--rw", f"{target}/upper", layout, target)

    def test_a_layer_that_the_image_does_not_have(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        for number in ("0", "4"):
            said = refused(node, 13, "--layer", number, layout, target)
            assert said == f"{layout} has no layer {number}: it has 3, the lowest is 1"
        digest = f"sha256:{'0' * 64}"
        said = refused(node, 13, "--layer", digest, layout, target)
        assert said == f"{layout} has no layer with digest {digest}"

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (estargz.plain(BOTTOM).blob, "an ordinary tar+gzip layer, without a table of contents"),
            (gzip.compress(b"no archive" * 100), "gzip-compressed data, but no tar archive"),
            (b"\x28\xb5\x2f\xfd" + bytes(100), "a zstd-compressed layer, without a table of contents"),
            (b'{"schemaVersion": 2}', "JSON, so a manifest or an image's config perhaps, and no layer"),
            (b"", "an empty file"),
        ],
        ids=["tar+gzip", "gzip", "zstd", "json", "empty"],
    )
    def test_a_blob_that_is_no_estargz(self, node: ManualNode, content: bytes, what: str) -> None:
        path = f"{node.directory}/blob"
        with open(path, "wb") as blob:
            blob.write(content)
        assert (
            refused(node, 14, path, node.mountpoint())
            == f"{path} is no eStargz or zstd:chunked layer but {what}"
        )

    def test_an_image_with_an_ordinary_layer(self, node: ManualNode) -> None:
        ordinary = estargz.plain(BOTTOM)
        image = oci.image([estargz.build([file("here")]), ordinary])
        source = write_layout(f"{node.directory}/layout", image)
        assert refused(node, 14, source, node.mountpoint()) == (
            f"layer 2 ({ordinary.digest}) is no eStargz or zstd:chunked layer but an ordinary tar+gzip "
            "layer, "
            "without a table of contents"
        )

    def test_a_source_that_is_not_there(self, node: ManualNode, layout: str, registry: Registry) -> None:
        target, directory = node.mountpoint(), f"{node.directory}/layout"
        said = refused(node, 3, f"oci:{directory}:other", target)
        assert said == f"{directory} has no image 'other'; it has test"
        assert refused(node, 3, "oci:/nowhere:tag", target) == "there is no directory /nowhere"
        assert refused(node, 3, "./nowhere.tar.gz", target).startswith("there is no file /")
        assert "for an OCI layout, say oci:" in refused(node, 3, directory, target)
        said = refused(node, 3, "--plain-http", f"{registry.host}/manual/nothing", target)
        assert "manual/nothing" in said
        assert refused(node, 2, "Not an image!", target).startswith("'Not an image!' is not an image")

    def test_an_image_that_vouches_for_no_table_of_contents(
        self, node: ManualNode, registry: Registry
    ) -> None:
        layers = [estargz.build([file("here", b"content")])]
        reference = oci.push(registry.host, "manual/unverified", oci.image(layers, annotate=False))
        target = node.mountpoint()
        assert "vouches for no table of contents" in refused(node, 6, "--plain-http", reference, target)
        node.configure("[lazy]\nallow_unverified_toc = true\n")
        node.run("mount", "--plain-http", "--wait", reference, target)
        assert read(target, "here") == b"content"

    def test_without_root(self, node: ManualNode, layout: str) -> None:
        ended = node.run("mount", layout, node.mountpoint(), prefix=["unshare", "--user"], code=15)
        assert ended.errors == "layergate: mounting needs root\n"

    def test_without_fuse(self, node: ManualNode, layout: str) -> None:
        forbid = "mount --bind /dev/fuse /dev/fuse && mount -o remount,bind,nodev /dev/fuse"
        prefix = ("unshare", "--mount", "sh", "-c", f'{forbid} && exec "$@"', "sh")
        said = refused(node, 16, layout, node.mountpoint(), prefix=prefix)
        assert said.startswith("layers that are not here yet cannot be mounted on this host: FUSE: ")

    def test_a_registry_that_cannot_be_reached(self, node: ManualNode, registry: Registry) -> None:
        reference = oci.push(registry.host, "manual/small", small_image())
        prefix = ("unshare", "--net")
        node.configure("")
        said = refused(node, 5, "--plain-http", reference, node.mountpoint(), prefix=prefix)
        assert registry.host in said


class TestInterrupts:
    """A command that does not come to its end leaves nothing."""

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("way", ["--wait", "--foreground"])
    def test_while_it_streams(
        self, node: ManualNode, layout: str, way: str, number: signal.Signals, code: int
    ) -> None:
        target, upper = node.mountpoint(), f"{node.directory}/upper"
        command = node.start("mount", way, "--rw", upper, layout, target)
        eventually(lambda: mounts_on(target), "the mount")
        eventually(lambda: node.state(target).state == "lazy", "the word of it")
        send(command.pid, number)
        _, errors = command.communicate(timeout=60)
        assert command.returncode == code, errors
        assert mounts_on(target) == [], "when the command has ended, the mount is gone"
        assert nothing_is_left(node)
        assert not [name for name in os.listdir(node.directory) if "upper" in name]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_again_and_again_while_it_is_undone(
        self, node: ManualNode, layout: str, number: signal.Signals, code: int
    ) -> None:
        target = node.mountpoint()
        command = node.start("mount", "--foreground", layout, target)
        eventually(lambda: mounts_on(target), "the mount")
        eventually(lambda: node.state(target).state == "lazy", "the word of it")
        with locked(f"{node.root}/mounts/lock"):
            send(command.pid, number)
            eventually(lambda: waits_for_a_lock(command.pid), "the beginning of the end")
            for _ in range(10):
                send(command.pid, number)
                time.sleep(0.02)
            assert command.poll() is None
        _, errors = command.communicate(timeout=60)
        assert command.returncode == code, errors
        assert nothing_is_left(node)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
    def test_before_it_is_mounted(
        self, node: ManualNode, registry: Registry, throttle: Throttle, number: signal.Signals
    ) -> None:
        reference = by_way_of(throttle, oci.push(registry.host, "manual/small", small_image()))
        throttle.rate = 1
        target = node.mountpoint()
        command = node.start("mount", "--plain-http", reference, target)
        eventually(lambda: [one for one in node.listed() if one.state == "starting"], "its beginning")
        send(command.pid, number)
        command.communicate(timeout=60)
        assert command.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
        assert nothing_is_left(node)

    def test_a_mount_in_the_foreground_ends_with_a_native_mount(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        command = node.start("mount", "--foreground", layout, target, prefix=["nohup"])
        eventually(lambda: mounts_on(target), "the mount")
        send(command.pid, signal.SIGHUP)  # which nohup has it ignore
        assert command.poll() is None
        node.configure("")
        output, errors = command.communicate(timeout=60)
        assert (command.returncode, output, errors) == (0, f"{target}: mounted, complete\n", "")
        node.until_no_process()
        assert node.state(target).state == "native"
        assert read(target, "usr/share/new") == b"the only one"


class TestUnmounting:
    """By our command, by others', and after the worst."""

    @pytest.mark.parametrize("options", [[], ["--layer", "1"], ["--rw", "upper"]], ids=["ro", "layer", "rw"])
    def test_after_a_kill_of_everything(self, node: ManualNode, layout: str, options: list[str]) -> None:
        target = node.mountpoint()
        if "upper" in options:
            options = ["--rw", f"{node.directory}/upper"]
        node.run("mount", *options, layout, target)
        assert read(target, "usr/file5") == bytes([5]) * 2005
        node.kill_everything()
        assert node.state(target).state == "orphaned"
        assert node.state(target).keeper is None

        node.run("umount", target)
        assert nothing_is_left(node)
        node.configure("")
        node.run("mount", "--wait", *options, layout, target)
        assert read(target, "usr/file6") == bytes([6]) * 2006

    def test_after_a_kill_of_everything_and_a_cleaning_its_layers_go_with_it(
        self, node: ManualNode, layout: str
    ) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        assert read(target, "usr/share/new") == b"the only one"
        node.kill_everything()
        said = node.run("cache", "clean").output
        assert f"layergate umount {target} ends it" in " ".join(said.split())
        assert "0 layers of 0 B removed" in said
        assert read(target, "usr/share/new") == b"the only one", "what is here can be read"
        node.run("umount", target)
        assert nothing_is_left(node)
        assert os.listdir(f"{node.root}/layers") == []

    def test_after_a_kill_of_the_keeper_alone(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        keeper = node.state(target).keeper
        assert keeper is not None
        send(keeper, signal.SIGKILL)
        eventually(lambda: node.state(target).state == "orphaned", "the end of the keeper")
        assert read(target, "usr/file5") == bytes([5]) * 2005, "the mounter still brings it"
        node.run("umount", target)
        assert nothing_is_left(node)

    def test_what_is_in_use_is_unmounted_by_wish_alone(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        with Visitor(f"{target}/usr") as visitor:
            said = node.run("umount", target, code=17).errors
            assert said.startswith(f"layergate: {target} is in use (`fuser -vm {target}` says by whom)")
            assert node.state(target).state == "lazy", "nothing happened"
            assert visitor.ask("cat file5 | wc -c") == "2005"
            node.run("umount", "--lazy", target)
            assert mounts_on(target) == []
            assert visitor.ask("cat file5 | wc -c") == "2005"
            assert visitor.ask("cat file6 | wc -c") == "2006", "the mounter lives as long as its user"
        assert nothing_is_left(node)

    def test_by_somebody_else(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        unmount(target)
        assert nothing_is_left(node)

    def test_by_a_signal_to_its_keeper(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        send(node.state(target).keeper or 0, signal.SIGTERM)
        assert nothing_is_left(node)

    def test_what_is_not_ours_is_left_alone(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        said = node.run("umount", target, code=18).errors
        assert said == f"layergate: {target} is not one of the mounts that `layergate mounts` lists\n"
        node.run("mount", layout, target)
        mount("tmpfs", target, "tmpfs")
        said = node.run("umount", target, code=17).errors
        assert said == f"layergate: something else is mounted over {target}: unmount that first\n"
        unmount(target)
        other = node.mountpoint("other")
        assert node.run("umount", other, target, code=18).errors.count("\n") == 1
        assert nothing_is_left(node), "the second one was unmounted all the same"

    def test_a_mount_of_an_earlier_boot_is_gone(self, node: ManualNode, layout: str) -> None:
        target = node.mountpoint()
        node.run("mount", layout, target)
        node.kill_everything()
        unmount(target)
        (state,) = [name for name in os.listdir(f"{node.root}/mounts") if name.endswith(".json")]
        path = f"{node.root}/mounts/{state}"
        with open(path, encoding="utf-8") as old:
            text = old.read()
        with open(path, "w", encoding="utf-8") as new:
            new.write(text.replace('"boot":"', '"boot":"0'))
        assert node.listed() == []
        node.configure("")
        node.run("mount", "--wait", layout, target)
        node.run("umount", target)
        assert nothing_is_left(node)
