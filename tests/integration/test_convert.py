"""Converted images on real parts: everybody takes them, and everybody sees the tree of the source."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from fetcher.convert import Compressors, LayerFormat, LayerOptions
from snapshotter.image_places import Containerd as ContainerdAt
from tests import estargz, oci, trees
from tests.estargz import Layer, plain
from tests.fetcher.converting import SOURCES
from tests.integration.converting import (
    FAST,
    Converter,
    Layout,
    Looker,
    annotation,
    ctr_remote_converted,
    layout_of,
    toc_digest_by_ctr_remote,
)
from tests.integration.harness import Registry, call
from tests.integration.manual import BOTTOM, MIDDLE, TOP
from tests.integration.node import ON_DEMAND, Node, differences, running_node
from tests.tars import FORMATS, IMPLIED, PREFIXES, odd_tar

pytestmark = pytest.mark.containerd

ZSTD = LayerOptions(format=LayerFormat.ZSTD_CHUNKED, chunk_size=1 << 16)
_COMPRESSED = {"plain": "", "gzip": "+gzip", "zstd": "+zstd"}


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    """A node where only what is opened is fetched."""
    with running_node(f"{file_system}/convert", config=ON_DEMAND) as node:
        yield node


@pytest.fixture(scope="module")
def looker(node: Node, registry: Registry) -> Looker:
    return Looker(node, registry)


@pytest.fixture(scope="module")
def convert(node: Node) -> Iterator[Converter]:
    with Compressors(2) as compressors:
        yield Converter(compressors, ContainerdAt(node.containerd.address, "default"))


@pytest.fixture
def small(directory: str) -> str:
    """The layout of an image with three ordinary layers."""
    os.makedirs(directory)
    layout_of(f"{directory}/small", [plain(entries) for entries in (BOTTOM, MIDDLE, TOP)])
    return f"{directory}/small"


@pytest.fixture(scope="module")
def small_tree(looker: Looker, file_system: str) -> dict[str, trees.Entry]:
    """What overlayfs makes of it."""
    layout_of(f"{file_system}/small-tree", [plain(entries) for entries in (BOTTOM, MIDDLE, TOP)])
    return looker.ordinarily(f"{file_system}/small-tree")


@pytest.mark.parametrize("options", [FAST, ZSTD], ids=["estargz", "zstd"])
def test_a_converted_image_is_an_ordinary_one_and_a_lazy_one(
    convert: Converter,
    looker: Looker,
    small: str,
    small_tree: dict[str, trees.Entry],
    options: LayerOptions,
) -> None:
    convert(f"oci:{small}", f"oci:{small}-out", options)
    assert differences(looker.ordinarily(f"{small}-out"), small_tree) == []
    assert differences(looker.lazily(f"{small}-out"), small_tree) == []
    for layer in Layout.read(f"{small}-out").manifest.layers:
        found = toc_digest_by_ctr_remote(looker.node.containerd, layer.digest, options.format)
        assert found == annotation(layer.annotations)


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive", "registry", "containerd"])
def test_every_source_gives_the_same_image(
    convert: Converter, looker: Looker, registry: Registry, small: str, kind: str
) -> None:
    containerd = looker.node.containerd
    if kind == "docker-archive":
        source = f"docker-archive:{small}.tar"
        call(["skopeo", "copy", "--quiet", f"oci:{small}", f"docker-archive:{small}.tar:small:1"])
    elif kind == "oci-archive":
        source = f"{small}.tar"
        call(["skopeo", "copy", "--quiet", f"oci:{small}", f"oci-archive:{small}.tar:small"])
    else:
        reference = registry.push(small, f"convert/{kind}")
        source = reference if kind == "registry" else f"containerd:{reference}"
        containerd.pull(reference)
    convert(f"oci:{small}", f"oci:{small}-1")
    convert(source, f"oci:{small}-2")
    ours, others = Layout.read(f"{small}-1"), Layout.read(f"{small}-2")
    assert ours.diff_ids == others.diff_ids
    assert [layer.digest for layer in ours.manifest.layers] == [
        layer.digest for layer in others.manifest.layers
    ]


class TestTakers:
    """Who takes what we write, and sees the right tree in it."""

    def test_containerd_imports_an_archive(
        self, convert: Converter, looker: Looker, small: str, small_tree: dict[str, trees.Entry]
    ) -> None:
        convert(f"oci:{small}", f"docker-archive:{small}.tar:import.test/small:1")
        containerd = looker.node.containerd
        assert "import.test/small:1" in containerd.ctr("images", "import", f"{small}.tar")
        with containerd.mounted("import.test/small:1", f"{small}-mnt") as root:
            assert differences(trees.scan(root), small_tree) == []

    @pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
    def test_skopeo_takes_an_archive(
        self,
        convert: Converter,
        looker: Looker,
        small: str,
        small_tree: dict[str, trees.Entry],
        transport: str,
    ) -> None:
        convert(f"oci:{small}", f"{small}.tar")
        call(["skopeo", "copy", "--quiet", f"{transport}:{small}.tar", f"oci:{small}-out"])
        assert differences(looker.ordinarily(f"{small}-out"), small_tree) == []

    def test_skopeo_takes_a_registrys_image_to_an_archive_of_dockers(
        self, convert: Converter, looker: Looker, registry: Registry, small: str
    ) -> None:
        reference = f"{registry.host}/convert/skopeo:1"
        convert(f"oci:{small}", reference)
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false"]
        call([*copy, f"docker://{reference}", f"docker-archive:{small}.tar:small:1"])
        call(["skopeo", "copy", "--quiet", f"docker-archive:{small}.tar", f"oci:{small}-out"])
        convert(f"oci:{small}", f"oci:{small}-direct")
        assert Layout.read(f"{small}-out").diff_ids == Layout.read(f"{small}-direct").diff_ids

    @pytest.mark.parametrize("source", ["archive", "registry"])
    def test_buildah_takes_it(
        self,
        convert: Converter,
        registry: Registry,
        small: str,
        small_tree: dict[str, trees.Entry],
        source: str,
    ) -> None:
        buildah = ["buildah", "--storage-driver=vfs", f"--root={small}-root", f"--runroot={small}-run"]
        if source == "archive":
            convert(f"oci:{small}", f"docker-archive:{small}.tar:small:1")
            name = f"docker-archive:{small}.tar"
        else:
            name = f"docker://{registry.host}/convert/buildah:1"
            convert(f"oci:{small}", name.removeprefix("docker://"))
        try:
            container = call([*buildah, "from", "--tls-verify=false", name]).strip()
            root = call([*buildah, "mount", container]).strip()
            # A root that no layer has an entry for is made by buildah in a way of its own.
            without = (trees.ROOT, estargz.ESTARGZ_TOC, estargz.NO_LANDMARK)
            assert trees.difference(trees.scan(root), small_tree, without=without) == []
        finally:
            call([*buildah, "rm", "--all"])

    def test_ctr_remote_pulls_it_lazily(
        self, convert: Converter, registry: Registry, file_system: str, small: str
    ) -> None:
        reference = f"{registry.host}/convert/rpull:1"
        convert(f"oci:{small}", reference)
        with running_node(f"{file_system}/rpull", config=ON_DEMAND, name="stargz") as node:
            node.containerd.ctr("images", "rpull", "--plain-http", reference, program="ctr-remote")
            assert [one.state for one in node.states()] == ["stub"] * 3

    def test_containerds_content_store(
        self, convert: Converter, looker: Looker, small: str, small_tree: dict[str, trees.Entry]
    ) -> None:
        name = "store.test/small:1"
        convert(f"oci:{small}", f"containerd:{name}")
        containerd = looker.node.containerd
        # What is not tied to the record is collected as garbage here.
        containerd.ctr("images", "tag", name, "store.test/small:2")
        containerd.ctr("images", "rm", "--sync", "store.test/small:2")
        assert " complete (4/4)" in containerd.ctr("images", "check", f"name=={name}")
        containerd.ctr("images", "export", f"{small}.tar", name)
        call(["skopeo", "copy", "--quiet", f"oci-archive:{small}.tar", f"oci:{small}-out"])
        assert differences(looker.ordinarily(f"{small}-out"), small_tree) == []
        assert "layergate" not in containerd.ctr("leases", "list")


def test_many_platforms_stay_in_one_index(
    convert: Converter, looker: Looker, registry: Registry, small: str
) -> None:
    other = f"{small}-other"
    layout_of(other, [plain(BOTTOM), plain([estargz.file("of another", b"machine")])])
    entries = []
    for layout, architecture in ((small, oci.ARCHITECTURE), (other, "s390x")):
        with open(f"{layout}/index.json", "rb") as file:
            (entry,) = json.load(file)["manifests"]
        platform = {"os": "linux", "architecture": architecture}
        entries.append({key: entry[key] for key in ("mediaType", "digest", "size")} | {"platform": platform})
    call(["cp", "-r", f"{other}/blobs", small])
    with open(f"{small}/index.json", "w", encoding="ascii") as file:
        json.dump({"schemaVersion": 2, "manifests": entries}, file)
    reference = f"{registry.host}/convert/platforms:1"
    convert(f"oci:{small}", reference, all_platforms=True)
    inspect = ["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{reference}"]
    manifests = json.loads(call(inspect))["manifests"]
    assert [entry["platform"] for entry in manifests] == [entry["platform"] for entry in entries]
    copy = ["skopeo", "copy", "--quiet", "--all", "--src-tls-verify=false"]
    call([*copy, f"docker://{reference}", f"oci:{small}-all"])
    said = looker.node.pull(reference)
    assert "3 lazy" in said or "3 exists" in said


def test_the_same_bytes_with_one_process_and_with_two(looker: Looker, small: str) -> None:
    for jobs in (1, 2):
        with Compressors(jobs) as compressors:
            convert = Converter(compressors, ContainerdAt(looker.node.containerd.address, "default"))
            convert(f"oci:{small}", f"{small}-{jobs}.tar")
    with open(f"{small}-1.tar", "rb") as first, open(f"{small}-2.tar", "rb") as second:
        assert first.read() == second.read()


def test_an_image_goes_to_another_repository_as_it_is(
    convert: Converter, registry: Registry, small: str
) -> None:
    """Its layers are in the format; docker-registry mounts them from the other repository."""
    registry_image = registry.push(small, "convert/mounted")
    convert(registry_image, f"{registry.host}/convert/first:1")
    convert(f"{registry.host}/convert/first:1", f"{registry.host}/convert/second:1", rebuild=False)
    digests = [
        call(["skopeo", "inspect", "--tls-verify=false", "--format={{.Digest}}", f"docker://{name}"])
        for name in (f"{registry.host}/convert/first:1", f"{registry.host}/convert/second:1")
    ]
    assert digests[0] == digests[1]


def layer_of(tar: bytes, compression: str) -> Layer:
    """A layer whose blob is the tar, compressed as told."""
    media_type = f"application/vnd.oci.image.layer.v1.tar{_COMPRESSED[compression]}"
    return Layer(SOURCES[compression](tar), oci.digest(tar), len(tar), media_type=media_type)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("compression", SOURCES)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_odd_tars(
    convert: Converter, looker: Looker, directory: str, prefix: str, form: str, compression: str
) -> None:
    """Converted by us: overlayfs, skopeo, ctr-remote and we ourselves see what overlayfs sees in the source.

    And converted by ctr-remote: we see the same.
    """
    os.makedirs(directory)
    source, whole = f"{directory}/source", f"{directory}/whole"
    layout_of(source, [layer_of(odd_tar(prefix, form, sparse=True), compression)])
    layout_of(whole, [layer_of(odd_tar(prefix, form, sparse=False), compression)])
    expected = looker.ordinarily(whole)
    for options in (ZSTD, FAST):
        ours = f"{directory}/{options.format.name}"
        convert(f"oci:{source}", f"oci:{ours}", options)
        assert differences(looker.ordinarily(ours), expected, implied=IMPLIED) == []
        assert differences(looker.lazily(ours), expected, implied=IMPLIED) == []
        (layer,) = Layout.read(ours).manifest.layers
        found = toc_digest_by_ctr_remote(looker.node.containerd, layer.digest, options.format)
        assert found == annotation(layer.annotations)
    call(["skopeo", "copy", "--quiet", f"oci:{ours}", f"docker-archive:{ours}.tar:ours:1"])
    with ctr_remote_converted(looker.node.containerd, whole, f"{directory}/theirs") as theirs:
        assert differences(looker.lazily(theirs), expected, implied=IMPLIED) == []
