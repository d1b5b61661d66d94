"""Pulling through a real containerd: into its overlayfs, and into a snapshotter that makes layers itself."""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from snapshotter.containerd.client import connect
from snapshotter.containerd.errors import ContainerdError, ContainerdRefused
from snapshotter.containerd.image import PullableImage, UnusableImage, WrongLayer
from snapshotter.containerd.labels import chain_ids
from snapshotter.containerd.progress import LayerState
from snapshotter.containerd.pull import PullResult, pull_image
from snapshotter.containerd.types import Descriptor
from tests import estargz, oci
from tests.integration.harness import Containerd, Registry
from tests.snapshotter.lazy_proxy import LazyProxy, serving
from tests.snapshotter.pull_images import pullable, shell, tar_of, text_layer

pytestmark = pytest.mark.containerd

DOWNLOADING, DOWNLOADED = LayerState.DOWNLOADING, LayerState.DOWNLOADED
UNPACKING, UNPACKED = LayerState.UNPACKING, LayerState.UNPACKED
EXISTS, LAZY = LayerState.EXISTS, LayerState.LAZY
REF = "containerd.io/snapshot.ref"
PREFIX = "containerd.io/snapshot/"


@dataclass
class Watcher:
    """Progress, as it was told."""

    states: dict[int, list[LayerState]] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)

    def layers(self, layers: Sequence[Descriptor]) -> None:
        self.states = {number: [] for number in range(len(layers))}

    def state(self, number: int, state: LayerState) -> None:
        self.states[number].append(state)

    def received(self, number: int, done: int) -> None:
        self.bytes[number] = done


class Node:
    """One containerd with a proxy snapshotter, seen from one namespace."""

    def __init__(self, containerd: Containerd, proxy: LazyProxy, namespace: str) -> None:
        self.containerd = containerd
        self.proxy = proxy
        self.namespace = namespace
        self.watcher = Watcher()

    async def pulling(self, image: PullableImage, snapshotter: str) -> PullResult:
        async with connect(self.containerd.address, self.namespace) as client:
            return await pull_image(client, image, snapshotter=snapshotter, progress=self.watcher)

    def pull(self, image: PullableImage, snapshotter: str = "lazy") -> PullResult:
        return asyncio.run(self.pulling(image, snapshotter))

    def ctr(self, *arguments: str) -> str:
        return self.containerd.ctr("--namespace", self.namespace, *arguments)

    def images(self) -> set[tuple[str, ...]]:
        return {tuple(line.split()) for line in self.ctr("images", "list").splitlines()[1:]}

    def content(self) -> dict[str, set[str]]:
        """Labels of each blob."""
        found = {}
        for line in self.ctr("content", "list").splitlines()[1:]:
            words = line.split()
            found[words[0]] = set(words[-1].split(","))
        return found

    def snapshots(self, snapshotter: str = "lazy") -> set[tuple[str, ...]]:
        """Name, parent and kind of each."""
        listed = self.ctr("snapshots", "--snapshotter", snapshotter, "list")
        return {tuple(line.split()) for line in listed.splitlines()[1:]}

    def collected(self) -> tuple[object, ...]:
        """What is left after a garbage collection, which the deletion of a lease with --sync runs."""
        self.ctr("leases", "create", "--id", "collect")
        self.ctr("leases", "delete", "--sync", "collect")
        leases = self.ctr("leases", "list", "--quiet").split()
        active = self.ctr("content", "active").splitlines()[1:]
        return self.images(), self.content(), self.snapshots(), self.snapshots("overlayfs"), leases, active

    def run(self, image: str, command: str, snapshotter: str = "lazy") -> str:
        container = f"{self.namespace}-run"
        options = ["--rm", "--snapshotter", snapshotter]
        return self.ctr("run", *options, image, container, "/bin/sh", "-c", command)


NOTHING: tuple[object, ...] = (set(), {}, set(), set(), [], [])


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = str(tmp_path_factory.mktemp("containerd"))
    names = ("lazy", "restarted")
    with Containerd(directory, snapshotters={name: f"{directory}/{name}.sock" for name in names}) as running:
        yield running


@pytest.fixture(scope="module")
def running_proxy(containerd: Containerd) -> Iterator[LazyProxy]:
    proxy = LazyProxy(f"{containerd.directory}/lazy")
    with serving(proxy, f"{containerd.directory}/lazy.sock"):
        yield proxy


@pytest.fixture
def node(containerd: Containerd, running_proxy: LazyProxy, request: pytest.FixtureRequest) -> Iterator[Node]:
    """In a namespace of its own, so that no test sees another's images; it is left empty."""
    running_proxy.reset()
    node = Node(containerd, running_proxy, f"test-{zlib.crc32(request.node.name.encode()):08x}")
    try:
        yield node
    finally:
        for name in node.ctr("images", "list", "--quiet").split():
            node.ctr("images", "remove", "--sync", name)
    assert node.collected() == NOTHING
    assert running_proxy.snapshots == {}


@pytest.fixture
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(str(tmp_path_factory.mktemp("registry"))) as running:
        yield running


def two_texts(request: pytest.FixtureRequest, *, lazy: tuple[bool, bool]) -> list[estargz.Layer]:
    """Two layers with content of this test's own: blobs are shared between namespaces."""
    name = request.node.name
    return [
        text_layer(f"text{number}", f"{number} of {name}", lazy=is_lazy)
        for number, is_lazy in enumerate(lazy)
    ]


def test_an_ordinary_pull_leaves_what_containerds_own_leaves(
    node: Node, registry: Registry, request: pytest.FixtureRequest
) -> None:
    image = oci.image([shell(), *two_texts(request, lazy=(False, False))])
    name = oci.push(registry.host, "some/image", image)
    result = node.pull(pullable(image, name), "overlayfs")
    assert result.states == (UNPACKED, UNPACKED, UNPACKED)
    assert result.downloaded == sum(len(layer.blob) for layer in image.layers)
    assert node.watcher.bytes == {number: len(layer.blob) for number, layer in enumerate(image.layers)}
    assert node.watcher.states[0] == [DOWNLOADING, DOWNLOADED, UNPACKING, UNPACKED]

    other = Node(node.containerd, node.proxy, f"{node.namespace}-own")
    other.ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", name)
    try:
        assert node.images() == other.images()
        assert node.content() == other.content()
        assert node.snapshots("overlayfs") == other.snapshots("overlayfs")
        for chain_id, *_ in node.snapshots("overlayfs"):
            assert f'"{REF}": "{chain_id}"' in node.ctr("snapshots", "info", chain_id)
    finally:
        other.ctr("images", "remove", "--sync", name)
    assert node.run(name, "read a </text0; read b </text1; echo $a, $b", "overlayfs").startswith("0 of ")


def test_lazy_layers_are_not_downloaded_and_the_container_runs(
    node: Node, request: pytest.FixtureRequest
) -> None:
    plain, lazy = two_texts(request, lazy=(False, True))
    image = oci.image([shell(), plain, lazy])
    node.proxy.lazy = {lazy.digest: tar_of(lazy)}
    name = "example.org/some/image:1"
    result = node.pull(pullable(image, name))
    assert result.states == (UNPACKED, UNPACKED, LAZY)
    assert result.downloaded == len(image.layers[0].blob) + len(plain.blob)
    assert lazy.digest not in node.content()
    assert node.run(name, "read a </text0; read b </text1; echo $a, $b").startswith("0 of ")


def test_every_layer_can_be_lazy(node: Node, request: pytest.FixtureRequest) -> None:
    layers = two_texts(request, lazy=(True, True))
    node.proxy.lazy = {layer.digest: tar_of(layer) for layer in layers}
    result = node.pull(pullable(oci.image(layers), "example.org/all:1"))
    assert (result.states, result.downloaded) == ((LAZY, LAZY), 0)
    assert node.watcher.states == {0: [LayerState.OPENING, LAZY], 1: [LayerState.OPENING, LAZY]}
    below, above = chain_ids([layer.diff_id for layer in layers])
    assert node.snapshots() == {(below, "Committed"), (above, below, "Committed")}


def test_prepare_gets_the_labels_a_remote_snapshotter_needs(
    node: Node, request: pytest.FixtureRequest
) -> None:
    layers = two_texts(request, lazy=(True, True))
    node.proxy.lazy = {layer.digest: tar_of(layer) for layer in layers}
    image = oci.image(layers)
    node.pull(pullable(image, "example.org/some/image:1"))
    chain = chain_ids([layer.diff_id for layer in layers])
    for number, prepared in enumerate(node.proxy.prepared):
        assert dict(prepared.labels) == {
            REF: chain[number],
            f"{PREFIX}cri.image-ref": "example.org/some/image:1",
            f"{PREFIX}cri.manifest-digest": image.digest,
            f"{PREFIX}cri.layer-digest": layers[number].digest,
            f"{PREFIX}cri.image-layers": ",".join(layer.digest for layer in layers[number:]),
            f"{PREFIX}stargz/toc.digest": layers[number].toc_digest,
        }
        assert prepared.key.endswith(f" {chain[number]}")
        assert f"{node.namespace}/" in prepared.key
        assert "/extract-" in prepared.key


def test_a_snapshotter_that_declines_gets_the_layers_the_ordinary_way(
    node: Node, request: pytest.FixtureRequest
) -> None:
    layers = two_texts(request, lazy=(True, True))
    result = node.pull(pullable(oci.image([shell(), *layers]), "example.org/declined:1"))
    assert result.states == (UNPACKED, UNPACKED, UNPACKED)
    assert node.run("example.org/declined:1", "read a </text1; echo $a").startswith("1 of ")


def test_a_download_begun_for_a_layer_that_gets_lazy_is_given_up(
    node: Node, request: pytest.FixtureRequest
) -> None:
    layers = two_texts(request, lazy=(False, False))  # no annotation promises anything
    node.proxy.lazy = {layer.digest: tar_of(layer) for layer in layers}
    image = pullable(oci.image(layers), "example.org/unannounced:1")

    @asynccontextmanager
    async def never(layer: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        await asyncio.Event().wait()
        yield pytest.fail("an event that nobody sets")

    result = node.pull(dataclasses.replace(image, open_layer=never))
    assert result.states == (LAZY, LAZY)


def test_a_second_pull_finds_everything(node: Node, request: pytest.FixtureRequest) -> None:
    lazy, plain = two_texts(request, lazy=(True, False))
    node.proxy.lazy = {lazy.digest: tar_of(lazy)}
    image = pullable(oci.image([lazy, plain]), "example.org/twice:1")
    assert node.pull(image).states == (LAZY, UNPACKED)
    before = node.images(), node.content(), node.snapshots()
    again = node.pull(image)
    assert (again.states, again.downloaded) == ((EXISTS, EXISTS), 0)
    assert (node.images(), node.content(), node.snapshots()) == before


def test_an_image_that_shares_layers_builds_on_them(node: Node, request: pytest.FixtureRequest) -> None:
    shared, own = two_texts(request, lazy=(False, False))
    node.pull(pullable(oci.image([shared]), "example.org/first:1"))
    result = node.pull(pullable(oci.image([shared, own]), "example.org/second:1"))
    assert (result.states, result.downloaded) == ((EXISTS, UNPACKED), len(own.blob))
    sources = [label for label in node.content()[shared.digest] if "distribution.source" in label]
    assert sources == ["containerd.io/distribution.source.example.org=first"]


def test_a_layer_that_occurs_twice_is_downloaded_once(node: Node, request: pytest.FixtureRequest) -> None:
    layer, other = two_texts(request, lazy=(False, False))
    result = node.pull(pullable(oci.image([layer, other, layer]), "example.org/repeated:1"))
    assert result.states == (UNPACKED, UNPACKED, UNPACKED)
    assert result.downloaded == len(layer.blob) + len(other.blob)


def test_a_layer_again_on_top_of_itself(node: Node, request: pytest.FixtureRequest) -> None:
    layer, other = two_texts(request, lazy=(False, False))
    node.pull(pullable(oci.image([layer, other]), "example.org/once:1"))
    again = node.pull(pullable(oci.image([layer, other, layer]), "example.org/again:1"))
    assert (again.states, again.downloaded) == ((EXISTS, EXISTS, UNPACKED), 0)


def test_the_same_image_on_two_snapshotters_is_kept_on_both(
    node: Node, request: pytest.FixtureRequest
) -> None:
    image = pullable(oci.image(two_texts(request, lazy=(False, False))), "example.org/both:1")
    node.pull(image, "overlayfs")
    assert node.pull(image).downloaded == 0
    _, _, lazy, ordinary, _, _ = node.collected()
    assert lazy == ordinary != set()


def test_an_index_is_the_target_and_keeps_the_manifest(node: Node, request: pytest.FixtureRequest) -> None:
    image = oci.image(two_texts(request, lazy=(False, False)))
    index = oci.index(image)
    node.pull(pullable(image, "example.org/index:1", index=index))
    assert f"containerd.io/gc.ref.content.m.0={image.digest}" in node.content()[oci.digest(index)]
    (record,) = node.images()
    assert record[:3] == ("example.org/index:1", oci.INDEX, oci.digest(index))
    assert image.digest in node.content()
    assert node.collected()[1] == node.content()


def test_a_tag_that_moved_moves_the_record(node: Node, request: pytest.FixtureRequest) -> None:
    first, second = two_texts(request, lazy=(False, False))
    node.pull(pullable(oci.image([first]), "example.org/moving:1"))
    moved = oci.image([second])
    node.pull(pullable(moved, "example.org/moving:1"))
    (record,) = node.images()
    assert record[2] == moved.digest
    node.collected()
    assert first.digest not in node.content()


def test_cri_finds_an_image_by_id_name_and_digest(containerd: Containerd, node: Node) -> None:
    image = oci.image([text_layer("cri", "for CRI")])
    cri = Node(containerd, node.proxy, "k8s.io")
    cri.pull(pullable(image, "example.org/cri:1"), "overlayfs")
    try:
        names = {oci.digest(image.config), "example.org/cri:1", f"example.org/cri@{image.digest}"}
        assert {record[0] for record in cri.images()} == names
        assert {record[-1] for record in cri.images()} == {"io.cri-containerd.image=managed"}
    finally:
        cri.ctr("images", "remove", "--sync", *names)
    assert cri.collected() == NOTHING


def test_two_pulls_of_one_image_at_once(node: Node, request: pytest.FixtureRequest) -> None:
    image = pullable(oci.image([shell(), *two_texts(request, lazy=(False, False))]), "example.org/race:1")

    async def both() -> tuple[PullResult, PullResult]:
        return await asyncio.gather(node.pulling(image, "overlayfs"), node.pulling(image, "overlayfs"))

    first, second = asyncio.run(both())
    assert set(first.states + second.states) <= {UNPACKED, EXISTS, LAZY}
    assert node.run("example.org/race:1", "read a </text1; echo $a", "overlayfs").startswith("1 of ")


def test_wrong_bytes_from_the_registry(node: Node, request: pytest.FixtureRequest) -> None:
    plain, _ = two_texts(request, lazy=(False, False))
    image = oci.image([plain])
    changed = bytes([*plain.blob[:-1], plain.blob[-1] ^ 1])
    with pytest.raises(WrongLayer, match=rf"layer {plain.digest} of .*: example\.org sent other bytes"):
        node.pull(pullable(image, "example.org/wrong:1", blobs={plain.digest: changed}))
    assert node.collected() == NOTHING
    assert node.pull(pullable(image, "example.org/wrong:1")).states == (UNPACKED,)


def test_a_layer_that_unpacks_to_something_else(node: Node, request: pytest.FixtureRequest) -> None:
    layer, other = two_texts(request, lazy=(False, False))
    image = pullable(oci.image([layer]), "example.org/lying:1", diff_ids=(other.diff_id,))
    with pytest.raises(WrongLayer, match=f"unpacks to {layer.diff_id}, its config promises {other.diff_id}"):
        node.pull(image)
    assert node.collected() == NOTHING


def test_manifest_and_config_that_disagree(request: pytest.FixtureRequest) -> None:
    layers = two_texts(request, lazy=(False, False))
    with pytest.raises(UnusableImage, match="lists 2 layers and its config 1"):
        pullable(oci.image(layers), "example.org/odd:1", diff_ids=(layers[0].diff_id,))


def test_a_snapshotter_that_lies_about_a_layer(node: Node, request: pytest.FixtureRequest) -> None:
    node.proxy.lying = True
    with pytest.raises(ContainerdError, match="target snapshot"):
        node.pull(pullable(oci.image(two_texts(request, lazy=(True, True))), "example.org/lie:1"))
    assert node.collected() == NOTHING


def test_a_snapshotter_that_was_just_restarted_is_waited_for(
    containerd: Containerd, node: Node, request: pytest.FixtureRequest
) -> None:
    address = f"{containerd.directory}/restarted.sock"
    proxy = LazyProxy(f"{containerd.directory}/restarted")
    below, above = two_texts(request, lazy=(False, False))
    with serving(proxy, address):
        node.pull(pullable(oci.image([below]), "example.org/before:1"), "restarted")
    with serving(proxy, address):  # containerd has yet to notice that its connection is gone
        result = node.pull(pullable(oci.image([below, above]), "example.org/after:1"), "restarted")
        assert result.states == (EXISTS, UNPACKED)
        node.ctr("images", "remove", "--sync", "example.org/before:1", "example.org/after:1")


def test_a_registry_that_fails_leaves_nothing_behind(node: Node, request: pytest.FixtureRequest) -> None:
    first, second = two_texts(request, lazy=(False, False))
    image = oci.image([first, second])
    with pytest.raises(KeyError):
        node.pull(pullable(image, "example.org/failing:1", blobs={first.digest: first.blob}))
    assert node.collected() == NOTHING


def test_an_interrupted_pull_leaves_nothing_behind(node: Node, request: pytest.FixtureRequest) -> None:
    image = pullable(oci.image(two_texts(request, lazy=(False, False))), "example.org/interrupted:1")

    async def interrupted() -> None:
        reading = asyncio.Event()

        @asynccontextmanager
        async def stuck(layer: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
            reading.set()
            await asyncio.Event().wait()
            yield pytest.fail("an event that nobody sets")

        pull = asyncio.create_task(node.pulling(dataclasses.replace(image, open_layer=stuck), "lazy"))
        await reading.wait()
        while not node.proxy.snapshots:  # noqa: ASYNC110 - another thread makes it
            await asyncio.sleep(0.01)
        pull.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pull

    asyncio.run(interrupted())
    assert node.snapshots() == set()
    assert node.ctr("leases", "list", "--quiet") == ""


def test_containerd_refuses_what_no_snapshot_can_be(node: Node, request: pytest.FixtureRequest) -> None:
    broken = dataclasses.replace(text_layer("x", request.node.name), blob=b"neither gzip nor tar")
    with pytest.raises(ContainerdRefused, match=f"could not unpack layer {broken.digest}"):
        node.pull(pullable(oci.image([broken]), "example.org/broken:1"))
    assert node.collected() == NOTHING
