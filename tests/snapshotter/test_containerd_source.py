"""Images in containerd's content store, as sources, and as `toc` and `compare` show them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.errors import SourceNotFound
from fetcher.images.choosing import choose_image
from fetcher.images.naming import ContainerdPlace
from fetcher.reference import parse_reference
from snapshotter.containerd.errors import ContainerdUnreachable
from snapshotter.containerd.image_source import ContainerdImageSource
from tests import archives, estargz, oci
from tests.estargz import build, file
from tests.integration.harness import Containerd
from tests.integration.processes import python

pytestmark = [pytest.mark.containerd, pytest.mark.anyio]

LARGE = bytes(range(256)) * 20_000
IMAGE = oci.image([build([file("a", LARGE)], level=0), estargz.plain([file("b", b"two")])])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = tmp_path_factory.mktemp("containerd")
    archive = archives.docker_save_25(directory / "image.tar", IMAGE, name="docker.io/some/image:1")
    with Containerd(str(directory)) as running:
        running.ctr("images", "import", str(archive))
        yield running


def source(containerd: Containerd, name: str) -> ContainerdImageSource:
    place = ContainerdPlace(name, parse_reference(name))
    return ContainerdImageSource(place, address=containerd.address, namespace="default")


@pytest.mark.parametrize("name", ["docker.io/some/image:1", "some/image:1"])
async def test_an_image_is_read(containerd: Containerd, name: str) -> None:
    async with source(containerd, name) as image:
        assert image.name == f"containerd:{name}"
        root = await image.root()
        chosen = await choose_image(image, None)
        assert (root.digest, root.data) == (IMAGE.digest, IMAGE.manifest)
        assert (await image.document(chosen.parsed.config)).data == IMAGE.config
        for descriptor, layer in zip(chosen.parsed.layers, IMAGE.layers, strict=True):
            blob = image.blob(descriptor)
            size = len(layer.blob)
            assert await blob.read(0, size) == layer.blob
            assert await blob.read(5, size - 5) == layer.blob[5:-5]
            assert await blob.read(7, 7) == b""
            assert await blob.tail(51) == (layer.blob[-51:], size)


async def test_what_is_missing_is_named(containerd: Containerd, tmp_path: Path) -> None:
    async with source(containerd, "some/other:1") as image:
        with pytest.raises(SourceNotFound, match=r"no image docker\.io/some/other:1 in its namespace"):
            await image.root()
    with pytest.raises(ContainerdUnreachable):
        async with ContainerdImageSource(
            ContainerdPlace("x", parse_reference("x")), address=str(tmp_path / "no.sock"), namespace="default"
        ):
            pass


async def test_a_layer_that_containerd_does_not_have(containerd: Containerd) -> None:
    async with source(containerd, "some/image:1") as image:
        layer = (await choose_image(image, None)).parsed.layers[1]
        containerd.ctr("content", "rm", layer.digest)
        with pytest.raises(SourceNotFound, match=f"does not have the content {layer.digest}"):
            await image.blob(layer).read(0, layer.size)


def test_the_commands(containerd: Containerd, tmp_path: Path) -> None:
    archive = archives.docker_save_25(tmp_path / "image.tar", IMAGE, name="docker.io/some/image:1")
    containerd.ctr("images", "import", str(archive))
    options = ["--containerd", containerd.address, "--namespace", "default"]
    command = python("snapshotter.entry", "toc", "--json", *options, "containerd:some/image:1")
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["layers"][0]["toc"]["digest"] == IMAGE.layers[0].toc_digest
    command = python("snapshotter.entry", "compare", *options, str(archive), "containerd:some/image:1")
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    exported = tmp_path / "exported.tar"
    containerd.ctr("images", "export", str(exported), "docker.io/some/image:1")
    command = python("snapshotter.entry", "compare", *options, str(exported), "containerd:some/image:1")
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
