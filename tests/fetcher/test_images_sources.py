"""Images from archives and registries: every tool's form, names, offsets, and what is wrong with one."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fetcher.errors import FetchError, RegistryNotFound, SourceNotFound
from fetcher.images import ImageSource
from fetcher.images.choosing import choose_image
from fetcher.images.naming import ArchivePlace, RegistryPlace, open_source, parse_place
from fetcher.manifest import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, OCI_MANIFEST, Descriptor, Platform
from fetcher.settings import RegistrySettings
from fetcher.sources import BlobSources
from tests import archives, estargz, oci
from tests.archives import (
    crane_save,
    docker_save_1_10,
    docker_save_25,
    file_member,
    link_member,
    podman_save,
    saved_json,
    write_tar,
)
from tests.estargz import Layer, build, dir, file
from tests.faulty_registry import FaultyRegistry
from tests.integration.manual import write_layout

pytestmark = pytest.mark.anyio

LAYERS = [
    build([dir("a/"), file("a/1", b"one" * 1000)]),
    estargz.plain([file("a/2", b"two")]),
    archives.EMPTY,
]


@asynccontextmanager
async def opened(text: str) -> AsyncIterator[ImageSource]:
    async with BlobSources(RegistrySettings()) as registries:
        place = parse_place(text)
        assert isinstance(place, RegistryPlace | ArchivePlace)
        async with open_source(place, registries=registries) as source:
            yield source


async def layers_of(source: ImageSource, platform: Platform | None = None) -> list[bytes]:
    """All layers' bytes, each of which has the size and the digest that the manifest says."""
    found = []
    for layer in (await choose_image(source, platform)).parsed.layers:
        data = await source.blob(layer).read(0, layer.size)
        assert oci.digest(data) == layer.digest
        assert await source.blob(layer).tail(7) == (data[-7:], layer.size)
        found.append(data)
    return found


def tars(layers: list[Layer]) -> list[bytes]:
    return [archives.layer_tar(layer) for layer in layers]


async def test_docker_1_10(tmp_path: Path) -> None:
    layers = [*LAYERS, LAYERS[1]]
    path = docker_save_1_10(tmp_path / "a.tar", layers)
    async with opened(f"docker-archive:{path}") as source:
        assert source.name == f"docker-archive:{path}"
        assert await layers_of(source) == tars(layers)
        root = await source.root()
        manifest = (await choose_image(source, None)).parsed
        config = await source.document(manifest.config)
        again = await source.document(Descriptor(root.digest, len(root.data), root.media_type, {}))
    assert again == root
    assert (root.media_type, config.media_type) == (DOCKER_MANIFEST, DOCKER_CONFIG)
    assert config.data == archives.config(layers)
    assert {layer.media_type for layer in manifest.layers} == {DOCKER_LAYER}
    async with opened(str(docker_save_1_10(tmp_path / "other.tar", layers, names=["x"]))) as source:
        assert await source.root() == root, "the manifest is of the image alone"


async def test_podman(tmp_path: Path) -> None:
    async with opened(str(podman_save(tmp_path / "a.tar", LAYERS))) as source:
        assert await layers_of(source) == tars(LAYERS)


async def test_layers_may_be_compressed(tmp_path: Path) -> None:
    async with opened(str(crane_save(tmp_path / "a.tar", LAYERS))) as source:
        assert await layers_of(source) == [layer.blob for layer in LAYERS]
        manifest = (await choose_image(source, None)).parsed
    assert {layer.media_type for layer in manifest.layers} == {f"{DOCKER_LAYER}.gzip"}


async def test_layers_may_be_zstd(tmp_path: Path) -> None:
    data = archives.zstd_layer_tar(LAYERS[0])
    saved = saved_json({"Config": "c", "RepoTags": None, "Layers": ["l"]})
    members = [file_member("c", archives.config(LAYERS[:1])), file_member("l", data), saved]
    async with opened(str(write_tar(tmp_path / "a.tar", members))) as source:
        assert await layers_of(source) == [data]
        (layer,) = (await choose_image(source, None)).parsed.layers
    assert layer.media_type == f"{DOCKER_LAYER}.zstd"


async def test_docker_25_is_read_as_the_layout_that_it_is(tmp_path: Path) -> None:
    image = oci.image(LAYERS)
    path = docker_save_25(tmp_path / "a.tar", image)
    for text in (str(path), f"docker-archive:{path}:new:1", f"docker-archive:{path}:1"):
        async with opened(text) as source:
            root = await source.root()
            assert (root.digest, root.media_type) == (image.digest, OCI_MANIFEST)
            assert await layers_of(source) == [layer.blob for layer in LAYERS]
    async with opened(f"docker-archive:{path}:old:1") as source:
        with pytest.raises(SourceNotFound, match=r"no image 'old:1'; it has docker\.io/library/new:1$"):
            await source.root()


async def test_of_several_images_one_is_named(tmp_path: Path) -> None:
    members = []
    saved = []
    for number, names in enumerate([["one:1", "also/one:1"], ["registry.local:5000/two:2"], None]):
        config = archives.config([LAYERS[number]])
        members += [file_member(f"c{number}", config), file_member(f"l{number}", tars(LAYERS)[number])]
        saved.append({"Config": f"c{number}", "RepoTags": names, "Layers": [f"l{number}"]})
    path = write_tar(tmp_path / "a.tar", [*members, saved_json(*saved)])
    for name, number in (
        ("one:1", 0),
        ("docker.io/library/one:1", 0),
        ("also/one:1", 0),
        ("registry.local:5000/two:2", 1),
        ("@0", 0),
        ("@2", 2),
    ):
        async with opened(f"docker-archive:{path}:{name}") as source:
            assert await layers_of(source) == [tars(LAYERS)[number]], name
    there = "@2, also/one:1, one:1, registry.local:5000/two:2"
    with pytest.raises(SourceNotFound, match=f"several images: name one of {there}$"):
        await enter(str(path))
    for name in ("one", "two:2", "@3"):
        with pytest.raises(SourceNotFound, match=f"no image '{name}'; it has {there}$"):
            await enter(f"docker-archive:{path}:{name}")


async def enter(text: str) -> None:
    async with opened(text) as source:
        await source.root()


async def error_of(path: Path) -> str:
    with pytest.raises(FetchError) as caught:
        await enter(f"docker-archive:{path}")
    return str(caught.value)


async def test_what_is_wrong_with_an_archive_is_named(tmp_path: Path) -> None:
    config = archives.config(LAYERS[:1])
    good = [file_member("c", config), file_member("l", tars(LAYERS)[0])]

    async def error(*members: archives.Member) -> str:
        return await error_of(write_tar(tmp_path / "a.tar", members))

    def saved(*layers: str, config: str = "c") -> archives.Member:
        return saved_json({"Config": config, "RepoTags": None, "Layers": list(layers)})

    assert "neither index.json nor manifest.json" in await error(*good)
    assert "before 1.10" in await error(file_member("repositories", b"{}"))
    assert "has no image" in await error(saved_json())
    assert "is not docker's" in await error(file_member("manifest.json", b"{}"))
    assert "is not docker's" in await error(file_member("manifest.json", b"[\xff]"))
    assert "lacks 'none'" in await error(*good, saved("l", config="none"))
    assert "lacks 'none'" in await error(*good, saved("none"))
    assert "lists 2 layers and its config 1" in await error(*good, saved("l", "l"))
    assert "'l' is no config" in await error(good[0], file_member("l", b"{}"), saved("l", config="l"))
    assert "the layer 'l' is no tar" in await error(good[0], file_member("l", b"no tar"), saved("l"))
    assert "lacks 'etc/passwd', to which 'l' is a link" in await error(
        good[0], link_member("l", "../../../etc/passwd"), saved("l")
    )
    assert "16777216 are allowed" in await error(file_member("manifest.json", bytes((16 << 20) + 1)))
    compressed = tmp_path / "a.tar.gz"
    compressed.write_bytes(gzip.compress(podman_save(tmp_path / "b.tar", LAYERS).read_bytes()))
    assert "decompress it first" in await error_of(compressed)


async def test_another_platform_by_wish_alone(tmp_path: Path) -> None:
    config = json.loads(archives.config(LAYERS[:1])) | {"architecture": "s390x"}
    saved = saved_json({"Config": "c", "RepoTags": None, "Layers": ["l"]})
    members = [file_member("c", json.dumps(config).encode()), file_member("l", tars(LAYERS)[0]), saved]
    async with opened(str(write_tar(tmp_path / "a.tar", members))) as source:
        assert await layers_of(source) == await layers_of(source, Platform("linux", "s390x"))
        with pytest.raises(SourceNotFound, match=r"no image for linux/amd64; there is: linux/s390x$"):
            await layers_of(source, Platform("linux", "amd64"))


async def test_a_registry() -> None:
    image = oci.image(LAYERS)
    with FaultyRegistry() as registry:
        reference = registry.add_image("some/image", image)
        index = registry.add_manifest("some/image", oci.index(image), tag="index", media_type=oci.INDEX)
        async with opened(reference) as source:
            assert source.name == reference
            assert (await source.root()).digest == image.digest
            assert await layers_of(source) == [layer.blob for layer in LAYERS]
            config = (await choose_image(source, Platform.host())).parsed.config
            assert (await source.document(config)).data == image.config
        async with opened(f"{registry.host}/some/image:index") as source:
            chosen = await choose_image(source, None)
            assert (chosen.root.digest, chosen.manifest.digest) == (index, image.digest)
            with pytest.raises(SourceNotFound, match="no image for linux/s390x"):
                await choose_image(source, Platform("linux", "s390x"))
        with pytest.raises(RegistryNotFound):
            await enter(f"{registry.host}/some/image:none")


@pytest.mark.containerd
async def test_what_skopeo_writes(tmp_path: Path) -> None:
    image = oci.image(LAYERS)
    layout = write_layout(str(tmp_path / "layout"), image)
    for kind in ("docker-archive", "oci-archive"):
        target = f"{kind}:{tmp_path}/{kind}.tar:registry.local/some/image:1"
        await anyio.run_process(["skopeo", "copy", "-q", layout, target])
    for name in ("", ":registry.local/some/image:1"):
        async with opened(f"docker-archive:{tmp_path}/docker-archive.tar{name}") as source:
            assert await layers_of(source) == tars(LAYERS)
        async with opened(f"docker-archive:{tmp_path}/oci-archive.tar{name}") as source:
            assert await layers_of(source) == [layer.blob for layer in LAYERS]
            assert (await source.root()).digest == image.digest
