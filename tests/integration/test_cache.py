"""The cache of a real node: bytes that come back, layers in use that stay, a disk that fills up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.containerd.labels import chain_ids
from tests import oci
from tests.estargz import build, dir, file, plain
from tests.integration import recipe
from tests.integration.caching import (
    READ_ALL,
    DataImage,
    cache,
    data,
    layer_directories,
    programs,
    remove_image,
    used_by,
)
from tests.integration.conftest import References
from tests.integration.harness import (
    LAYERGATE,
    CommandFailed,
    Registry,
    Throttle,
    disk_use,
    fresh_file_system,
    mounts,
)
from tests.integration.lazy import by_way_of, transient_mounts, until_complete
from tests.integration.node import Node, eventually, mounts_of, program_files, running_node
from tests.integration.processes import REPOSITORY, is_running, send
from tests.snapshotter.snapshots_client import mounted

pytestmark = pytest.mark.containerd

MIB = 1 << 20


@pytest.fixture
def node(directory: str) -> Iterator[Node]:
    with running_node(directory) as running:
        yield running


@pytest.fixture
def small(registry: Registry) -> tuple[str, DataImage]:
    """A small image in the registry, and what is in it."""
    image = DataImage.of(programs(), data(1, files=10, size=100_000))
    return oci.push(registry.host, "cache/small", image.image), image


def clean(node: Node, *options: str) -> dict[str, object]:
    return cache(node.layergate, "clean", *options)


def test_after_removal_and_cleaning_the_disk_is_as_before(
    node: Node, references: References, small: tuple[str, DataImage]
) -> None:
    # Mounter and database make their files once.
    node.pull(small[0])
    node.run(small[0], READ_ALL)
    remove_image(node, small[0])
    clean(node)
    before = disk_use(node.layergate.root)
    node.pull(references.optimized)
    assert node.run(references.optimized, recipe.COMMAND) == recipe.OUTPUT
    until_complete(node.layergate)
    full = disk_use(node.layergate.root)
    assert full > before + 100 * MIB
    listed = cache(node.layergate, "ls")
    assert isinstance(listed["bytes"], int)
    assert abs(full - before - listed["bytes"]) < MIB

    remove_image(node, references.optimized)
    report = clean(node)
    assert report["done"] is True
    assert isinstance(report["freed_bytes"], int)
    assert report["freed_bytes"] > 100 * MIB
    assert disk_use(node.layergate.root) <= before + MIB
    assert layer_directories(node.layergate) == []
    assert not [mount for mount in mounts(node.layergate.root) if "/meta/" in mount.target]


def test_without_serve_it_is_the_same(node: Node, small: tuple[str, DataImage]) -> None:
    reference, image = small
    node.pull(reference)
    until_complete(node.layergate)
    assert node.run(reference, READ_ALL) == image.reads
    node.layergate.stop()
    named = [user for users in used_by(node.layergate).values() for user in users]
    assert {user["kind"] for user in named} == {"snapshot"}
    assert clean(node, "--all")["done"] is False
    node.start_again()
    remove_image(node, reference)
    node.layergate.stop()
    assert clean(node, "--all")["done"] is True
    assert layer_directories(node.layergate) == []


def test_what_a_container_stands_on_stays(node: Node, registry: Registry, throttle: Throttle) -> None:
    base = programs()
    image = DataImage.of(base, data(2, files=20, size=200_000))
    reference = by_way_of(throttle, oci.push(registry.host, "cache/used", image.image))
    throttle.rate = 500_000
    node.pull(reference)
    with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as container:
        report = clean(node, "--all")
        assert report["removed"] == []
        assert report["done"] is False
        kinds = {user["kind"] for users in used_by(node.layergate).values() for user in users}
        assert kinds == {"snapshot", "mount"}
        with pytest.raises(CommandFailed) as failure:
            node.layergate.command(
                "cache",
                "clean",
                "--image",
                reference,
                "--root",
                node.layergate.root,
                "--address",
                node.layergate.socket,
            )
        assert failure.value.returncode == 20
        assert "stays, in use by" in failure.value.output
        throttle.rate = 0
        assert container.execute(*READ_ALL) == image.reads
        until_complete(node.layergate)
        assert clean(node, "--all")["removed"] == []
        assert container.execute(*READ_ALL) == image.reads
    remove_image(node, reference)
    assert clean(node, "--all")["done"] is True


def test_what_a_mount_stands_on_stays_though_nobody_names_its_snapshot_any_more(
    node: Node, registry: Registry, throttle: Throttle
) -> None:
    image = DataImage.of(programs(), data(9, files=20, size=200_000))
    reference = by_way_of(throttle, oci.push(registry.host, "cache/standing", image.image))
    throttle.rate = 500_000
    node.pull(reference)
    key, target = "standing", f"{node.directory}/standing"
    chain = chain_ids([layer.diff_id for layer in image.image.layers])[-1]
    snapshots = ["snapshots", "--snapshotter", node.name]
    with mounted(mounts_of(node.containerd.ctr(*snapshots, "prepare", "--mounts", key, chain)), target):
        node.containerd.ctr(*snapshots, "remove", key)
        node.containerd.ctr("images", "rm", "--sync", reference)
        eventually(lambda: not transient_mounts(node.layergate), "the lazy lower to be released")
        here = {name for one in node.states() for name in node.plain_files(one.layer) if "data/" in name}
        report = clean(node, "--all")
        assert report["removed"] == []
        assert {user["name"] for users in used_by(node.layergate).values() for user in users} == {target}
        for name in here:
            with open(f"{target}/{name}", "rb") as file:
                assert len(file.read()) == 200_000
    assert clean(node, "--all")["done"] is True
    assert layer_directories(node.layergate) == []


def test_an_image_removed_while_it_streams_streams_no_more(
    node: Node, registry: Registry, throttle: Throttle
) -> None:
    image = DataImage.of(programs(), data(3, files=60, size=1_000_000))
    reference = by_way_of(throttle, oci.push(registry.host, "cache/streaming", image.image))
    throttle.rate = 2_000_000
    node.pull(reference)
    eventually(lambda: any(one.state == "streaming" for one in node.states()), "a layer to stream")
    assert _workers(node)
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: node.event("layer_not_wanted"), "the streams to be stopped")
    eventually(lambda: not _workers(node), "the worker processes to end")
    assert {one.state for one in node.states()} <= {"stub", "complete"}
    report = clean(node)
    assert report["done"] is True
    assert layer_directories(node.layergate) == []


def test_a_pull_that_is_stopped_streams_no_more(
    directory: str, registry: Registry, throttle: Throttle
) -> None:
    """Its lowest layer is lazy, the next one is being downloaded, and the uppermost has been announced."""
    noise = random.Random(11)
    layers = [
        build([*program_files("true"), dir("data/"), file("data/1", noise.randbytes(2_000_000))]),
        plain([file("data/2", noise.randbytes(2_000_000))]),
        build([dir("data/"), file("data/3", noise.randbytes(2_000_000))]),
    ]
    reference = by_way_of(throttle, oci.push(registry.host, "cache/stopped", oci.image(layers)))
    with running_node(directory) as node:
        throttle.rate = 200_000
        options = ["--containerd", node.containerd.address, "--address", node.layergate.socket]
        with subprocess.Popen([*LAYERGATE, "pull", *options, reference], cwd=REPOSITORY) as pull:
            eventually(lambda: node.event("remote_snapshot"), "the lowest layer's snapshot")
            eventually(lambda: len(_workers(node)) == 2, "a worker for each of the lazy layers")
            send(pull.pid, signal.SIGINT)
        assert pull.returncode == 130
        # What was announced, and for which no Prepare comes, would be kept up for a minute.
        eventually(lambda: not _workers(node), "the workers to end", patience=40)
        throttle.rate = 0

        def removed() -> bool:
            return clean(node)["done"] is True and layer_directories(node.layergate) == []

        eventually(removed, "the layers to be removed", patience=40)


def test_a_layer_that_is_unpacked_the_ordinary_way_is_not_streamed_as_well(
    directory: str, registry: Registry
) -> None:
    upper = build([file("data/without-an-entry", random.Random(10).randbytes(500_000))])
    image = oci.image([build([*program_files("true"), dir("data/", mode=0o700)]), upper])
    reference = oci.push(registry.host, "cache/unfit", image)
    with running_node(directory, config="[stream]\nbytes_per_second = 1000\n") as node:
        assert "1 lazy, 1 unpacked" in node.pull(reference)
        assert node.event("layer_not_lazy_here")
        # An opening whose Prepare never comes is kept up for a minute.
        eventually(lambda: len(_workers(node)) == 1, "one worker to be left", patience=30)
        [streaming] = [one.digest for one in node.states() if one.state == "streaming"]
        assert streaming != upper.digest
        assert node.run(reference, ["/bin/true"]) == ""
        assert clean(node)["done"] is True
        assert [layer["digest"] for layer in _layers(node)] == [streaming]


def _layers(node: Node) -> list[dict[str, object]]:
    layers = cache(node.layergate, "ls")["layers"]
    assert isinstance(layers, list)
    return layers


def _workers(node: Node) -> list[int]:
    """Processes that stream, by their title."""
    found = []
    for pid in node.layergate.descendants:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"layergate: worker"):
                found.append(pid)
    return found


def test_a_disk_that_is_nearly_full_makes_streaming_wait(directory: str, registry: Registry) -> None:
    """The file system has 192 MiB; the image has 100, and a ballast takes what is more than 60."""
    image = DataImage.of(programs(), data(4, files=100, size=MIB))
    reference = oci.push(registry.host, "cache/large", image.image)
    with (
        fresh_file_system(directory, size=192 * MIB),
        running_node(directory, config='[cache]\nmin_free = "20MB"\n') as node,
    ):
        ballast = f"{directory}/ballast"
        fill(directory, ballast, leave=60 * MIB)
        node.pull(reference)
        paused = eventually(lambda: node.event("streaming_paused"), "streaming to be paused")
        assert paused["level"] == "warning"
        with node.containerd.container(
            reference, ["/bin/sleep", "infinity"], snapshotter=node.name
        ) as container:
            here = sorted(node.plain_files(layer_with_data(node)))
            assert here
            assert len(here) < 100
            for path in (here[0], here[-1]):
                assert container.execute("/bin/sha256sum", f"/{path}")
            # One that is not here comes on demand, out of the reserve.
            missing = sorted({f"data/4-{number:03}" for number in range(100)} - set(here))[-1]
            assert container.execute("/bin/sha256sum", f"/{missing}")
            assert {one.state for one in node.states()} <= {"stub", "complete"}
            os.unlink(ballast)
            eventually(lambda: node.event("streaming_resumed"), "streaming to go on")
            until_complete(node.layergate)
            assert container.execute(*READ_ALL) == image.reads
        assert node.run(reference, READ_ALL) == image.reads


def test_a_disk_that_is_full_fails_streams_until_there_is_space(directory: str, registry: Registry) -> None:
    image = DataImage.of(programs(), data(5, files=100, size=MIB))
    reference = oci.push(registry.host, "cache/overfull", image.image)
    with (
        fresh_file_system(directory, size=192 * MIB),
        running_node(directory, config='[cache]\nmin_free = "0"\n') as node,
    ):
        ballast = f"{directory}/ballast"
        fill(directory, ballast, leave=60 * MIB)
        node.pull(reference)
        failed = eventually(
            lambda: next((one for one in node.states() if one.error), None), "a stream to meet the end"
        )
        assert "No space left on device" in str(failed.error)
        path = sorted(node.plain_files(failed.layer))[0]
        os.unlink(ballast)
        assert node.run(reference, ["/bin/sha256sum", f"/{path}"])
        until_complete(node.layergate)
        assert node.run(reference, READ_ALL) == image.reads


def fill(directory: str, ballast: str, *, leave: int) -> None:
    """Take all but `leave` bytes of the file system's free space."""
    found = os.statvfs(directory)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)


def layer_with_data(node: Node) -> str:
    """The layer key of the image's upper layer, the one that is not complete."""
    [layer] = [one.layer for one in node.states() if one.state != "complete"]
    return layer


def test_unused_layers_make_room_before_anything_waits(directory: str, registry: Registry) -> None:
    base = programs()
    images = [DataImage.of(base, data(seed, files=50, size=MIB)) for seed in (6, 7)]
    references = [
        oci.push(registry.host, f"cache/room{number}", one.image) for number, one in enumerate(images)
    ]
    with (
        fresh_file_system(directory, size=160 * MIB),
        running_node(directory, config='[cache]\nmin_free = "30MB"\n') as node,
    ):
        node.pull(references[0])
        until_complete(node.layergate)
        remove_image(node, references[0])
        fill(directory, f"{directory}/ballast", leave=50 * MIB)
        node.pull(references[1])
        until_complete(node.layergate)
        assert node.event("layer_removed", reason="limits")
        assert node.run(references[1], READ_ALL) == images[1].reads


def test_the_size_is_kept_and_what_is_old_is_dropped(
    node: Node, registry: Registry, small: tuple[str, DataImage]
) -> None:
    reference, image = small
    node.pull(reference)
    until_complete(node.layergate)
    node.configure('[cache]\nmax_size = "1KB"\n')
    eventually(lambda: node.event("cache_over_limits"), "a word on layers that are all in use")
    assert node.run(reference, READ_ALL) == image.reads
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: layer_directories(node.layergate) == [], "the layers to go by themselves")
    node.configure('[cache]\nkeep_unused = "0s"\n')
    node.pull(reference)
    assert node.run(reference, READ_ALL) == image.reads
    node.containerd.ctr("images", "rm", "--sync", reference)
    eventually(lambda: layer_directories(node.layergate) == [], "the unused layers to be dropped")


def test_a_flipped_byte_is_found_and_mended_under_a_running_container(
    node: Node, small: tuple[str, DataImage]
) -> None:
    reference, image = small
    node.pull(reference)
    until_complete(node.layergate)
    layer = next(one for one in node.states() if "data/1-003" in node.plain_files(one.layer))
    path = os.path.join(node.layergate.root, "layers", layer.layer, "fs", "data/1-003")
    with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as container:
        assert container.execute(*READ_ALL) == image.reads
        with open(path, "r+b") as file:
            file.seek(777)
            byte = file.read(1)
            file.seek(777)
            file.write(bytes([byte[0] ^ 1]))
        assert container.execute(*READ_ALL) != image.reads
        found = cache(node.layergate, "verify", layer.digest)
        assert found["intact"] is False
        assert isinstance(found["layers"], list)
        assert [verdict["faults"] for verdict in found["layers"]] == [
            [{"path": "data/1-003", "kind": "content"}]
        ]
        mended = cache(node.layergate, "verify", "--repair", layer.digest)
        assert mended["intact"] is True
        assert container.execute("/bin/true") == ""
    assert node.run(reference, READ_ALL) == image.reads
    assert cache(node.layergate, "verify")["intact"] is True
    until_complete(node.layergate)


def test_what_a_crash_of_everything_leaves_is_cleaned(
    node: Node, registry: Registry, throttle: Throttle
) -> None:
    image = DataImage.of(programs(), data(8, files=40, size=500_000))
    reference = by_way_of(throttle, oci.push(registry.host, "cache/crash", image.image))
    throttle.rate = 1_000_000
    node.pull(reference)
    assert node.run(reference, ["/bin/sha256sum", "/data/8-030"])
    for pid in [node.layergate.pid, *node.layergate.descendants]:
        send(pid, signal.SIGKILL)
    node.layergate.kill9()
    eventually(lambda: not any(map(is_running, node.layergate.descendants)), "all processes to end")
    root = node.layergate.root
    assert [mount.type for mount in mounts(root) if mount.target == f"{root}/gate"]
    report = clean(node)
    assert report["removed"] == []
    assert mounts(root) == []
    assert os.listdir(f"{root}/late") == []
    node.start_again()
    throttle.rate = 0
    assert node.run(reference, READ_ALL) == image.reads
    remove_image(node, reference)
    assert clean(node)["done"] is True
    assert layer_directories(node.layergate) == []
