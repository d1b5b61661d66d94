"""Clients other than our own: those that pull lazily do so unchanged, the others work the ordinary way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from snapshotter.containerd.client import ContainerdClient, connect
from snapshotter.containerd.errors import ContainerdAlreadyExists
from snapshotter.containerd.labels import chain_ids
from snapshotter.containerd.types import SnapshotInfo, SnapshotKind
from tests import oci, trees
from tests.estargz import Layer, build, dir, file, plain
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import Registry
from tests.integration.node import ON_DEMAND, Node, differences, eventually, program_files, running_node
from tests.registry_faults import BasicLogin

pytestmark = pytest.mark.containerd

READ = ["/bin/cat", "/etc/one", "/etc/two"]


def layers(tag: str) -> list[Layer]:
    """A program's layer and two with text, which no other test has."""
    return [
        build([*program_files("cat"), file("tag", tag.encode())]),
        build([dir("etc/"), file("etc/one", f"one {tag}\n".encode())]),
        build([dir("etc/"), file("etc/two", f"two {tag}\n".encode())]),
    ]


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    """Our plugin under the name that stargz-snapshotter's own client and nerdctl ask for."""
    with running_node(f"{file_system}/clients", config=ON_DEMAND, name="stargz") as node:
        yield node


def rpull(node: Node, reference: str, *options: str) -> None:
    """`ctr-remote images rpull`."""
    node.containerd.ctr("images", "rpull", "--plain-http", *options, reference, program="ctr-remote")


def downloaded(node: Node) -> set[str]:
    """The digests that containerd's content store has."""
    return set(node.containerd.ctr("content", "ls", "--quiet").split())


def test_rpull_of_stargz_snapshotter_is_lazy(node: Node, registry: Registry) -> None:
    image = oci.image(layers("rpull"))
    reference = oci.push(registry.host, "clients/rpull", image)
    rpull(node, reference)
    assert node.is_lazy(image)
    assert not downloaded(node) & {layer.digest for layer in image.layers}
    assert node.run(reference, READ) == "one rpull\ntwo rpull\n"
    with node.mounted(image) as root:
        assert differences(trees.scan(root), node.ordinary(image, reference)) == []


def test_rpull_of_an_image_with_a_plain_layer(node: Node, registry: Registry) -> None:
    made = layers("mixed")
    made.insert(1, plain([dir("etc/"), file("etc/plain", b"plain\n")]))
    image = oci.image(made)
    reference = oci.push(registry.host, "clients/mixed", image)
    rpull(node, reference)
    assert node.is_lazy(image)
    # What is above the plain layer this client downloads too, before it asks whether it has to.
    assert image.layers[0].digest not in downloaded(node)
    assert node.run(reference, [*READ, "/etc/plain"]) == "one mixed\ntwo mixed\nplain\n"


def test_rpull_with_a_password_that_serve_does_not_know(node: Node) -> None:
    image = oci.image(layers("login"))
    with FaultyRegistry() as registry:
        reference = registry.add_image("clients/login", image)
        registry.require(BasicLogin("somebody", "secret"))
        rpull(node, reference, "--user", "somebody:secret")
    assert set(node.states_of(image).values()) == {"unknown"}
    assert downloaded(node) >= {layer.digest for layer in image.layers}
    assert node.run(reference, READ) == "one login\ntwo login\n"
    found = node.event("layer_not_lazy", digest=image.layers[0].digest)
    assert found is not None
    assert registry.host in found["error"]


def test_ctr_pulls_the_ordinary_way(node: Node, registry: Registry) -> None:
    image = oci.image(layers("ctr"))
    reference = oci.push(registry.host, "clients/ctr", image)
    node.containerd.pull(reference, snapshotter=node.name)
    assert set(node.states_of(image).values()) == {"unknown"}
    assert downloaded(node) >= {layer.digest for layer in image.layers}
    assert node.run(reference, READ) == "one ctr\ntwo ctr\n"
    with node.mounted(image) as root:
        assert differences(trees.scan(root), node.ordinary(image, reference)) == []


def cri_labels(reference: str, image: oci.Image, number: int, *, manifest: bool) -> dict[str, str]:
    """What CRI gives to Prepare of a layer; the manifest's digest from containerd 2.0 on."""
    layer = image.layers[number]
    labels = {
        "containerd.io/snapshot.ref": chain_ids([one.diff_id for one in image.layers])[number],
        "containerd.io/snapshot/cri.image-ref": reference,
        "containerd.io/snapshot/cri.layer-digest": layer.digest,
        "containerd.io/snapshot/cri.image-layers": ",".join(one.digest for one in image.layers[number:]),
        "containerd.io/snapshot/stargz/toc.digest": layer.toc_digest,
    }
    if manifest:
        labels["containerd.io/snapshot/cri.manifest-digest"] = image.digest
    return labels


@pytest.mark.parametrize("manifest", [False, True])
def test_layers_with_the_labels_of_cri_are_lazy(node: Node, registry: Registry, manifest: bool) -> None:
    image = oci.image(layers(f"cri {manifest}"))
    reference = oci.push(registry.host, f"clients/cri-{manifest}".lower(), image)
    chain = chain_ids([layer.diff_id for layer in image.layers])

    async def prepare(client: ContainerdClient, number: int) -> SnapshotInfo | None:
        labels = cri_labels(reference, image, number, manifest=manifest)
        parent = chain[number - 1] if number else ""
        with pytest.raises(ContainerdAlreadyExists):
            await client.prepare(node.name, f"extract {manifest} {number}", parent, labels)
        return await client.stat_snapshot(node.name, chain[number])

    def read() -> str:
        with node.mounted(image) as root, open(f"{root}/etc/one", encoding="utf-8") as text:
            return text.read()

    async def prepare_all() -> None:
        # Only the lease keeps the snapshots: containerd knows no image of theirs.
        async with connect(node.containerd.address, "default") as client, client.leased(3600) as leased:
            for number in range(len(chain)):
                info = await prepare(leased, number)
                assert info is not None
                assert info.kind is SnapshotKind.COMMITTED
                assert info.parent == (chain[number - 1] if number else "")
            assert node.is_lazy(image)
            assert await asyncio.to_thread(read) == f"one cri {manifest}\n"

    asyncio.run(prepare_all())


def test_labels_that_name_another_image_open_nothing_unverified(node: Node, registry: Registry) -> None:
    """An author's annotations become labels: a TOC digest that is not the layer's makes it ordinary."""
    image = oci.image(layers("forged"))
    reference = oci.push(registry.host, "clients/forged", image)
    labels = cri_labels(reference, image, 0, manifest=False)

    async def mounts(**changed: str) -> int:
        async with connect(node.containerd.address, "default") as client:
            key = f"forged {changed}"
            found = await client.prepare(node.name, key, "", labels | changed)
            await client.remove_snapshot(node.name, key)
            return len(found)

    for forged in (
        {"containerd.io/snapshot/stargz/toc.digest": oci.digest(b"another")},
        {"containerd.io/snapshot/stargz/toc.digest": "sha256:../../../etc"},
        {"containerd.io/snapshot/stargz/toc.digest": ""},
        {"containerd.io/snapshot/cri.layer-digest": oci.digest(b"another")},
        {"containerd.io/snapshot/cri.image-ref": "http://not a reference"},
    ):
        assert asyncio.run(mounts(**forged)) == 1
    assert set(node.states_of(image).values()) <= {"unknown", "stub", "streaming"}


def test_another_namespace_fetches_no_layer_again(node: Node) -> None:
    image = oci.image(layers("shared"))
    with FaultyRegistry() as registry:
        reference = registry.add_image("clients/shared", image)
        node.pull(reference)
        node.configure("")
        node.until_complete(image)
        digests = tuple(layer.digest for layer in image.layers)
        before = sum(path.endswith(digests) for _, _, path, _ in registry.log)
        assert "(3 lazy)" in node.pull(reference, "--namespace", "other")
        assert sum(path.endswith(digests) for _, _, path, _ in registry.log) == before
        printed = node.containerd.ctr(
            "--namespace", "other", "run", "--rm", "--snapshotter", node.name, reference, "in-other", *READ
        )
    assert printed == "one shared\ntwo shared\n"
    node.containerd.ctr("--namespace", "other", "images", "rm", "--sync", reference)
    node.configure(ON_DEMAND)


def test_an_image_that_was_removed_is_pulled_again(node: Node, registry: Registry) -> None:
    image = oci.image(layers("again"))
    reference = oci.push(registry.host, "clients/again", image)
    for _ in range(2):
        rpull(node, reference)
        assert node.run(reference, READ) == "one again\ntwo again\n"
        node.containerd.ctr("images", "rm", "--sync", reference)
        listed = node.containerd.ctr("snapshots", "--snapshotter", node.name, "ls")
        for chain_id in chain_ids([layer.diff_id for layer in image.layers]):
            assert chain_id not in listed
    eventually(lambda: node.events("meta_released"), "META to be released")
