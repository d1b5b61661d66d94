"""Writing archives: what is in the tar, that it is the same every time, that nothing half-written stays."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from fetcher.errors import DestinationUnusable
from fetcher.images.archive_destination import ArchiveDestination
from fetcher.images.archive_source import ArchiveImageSource
from fetcher.manifest import Platform
from fetcher.reference import parse_reference
from tests import oci
from tests.fetcher.destinations import IMAGE, OTHER, Writer, document

pytestmark = pytest.mark.anyio

NAMES = [parse_reference("example.io/team/app:v1"), parse_reference("app:other")]


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Writer(scratch)


def member(path: Path, name: str) -> bytes:
    with tarfile.open(path) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


async def test_it_has_an_oci_layout_and_dockers_manifest(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "image.tar"
    await writer.image(ArchiveDestination(str(path), NAMES))
    (entry,) = json.loads(member(path, "index.json"))["manifests"]
    assert entry == {
        "mediaType": oci.MANIFEST,
        "digest": IMAGE.digest,
        "size": len(IMAGE.manifest),
        "annotations": {
            "io.containerd.image.name": "example.io/team/app:v1",
            "org.opencontainers.image.ref.name": "v1",
        },
    }
    (saved,) = json.loads(member(path, "manifest.json"))
    assert saved["RepoTags"] == ["example.io/team/app:v1", "docker.io/library/app:other"]
    assert member(path, saved["Config"]) == IMAGE.config
    assert [member(path, layer) for layer in saved["Layers"]] == [layer.blob for layer in IMAGE.layers]
    async with ArchiveImageSource(str(path), None) as source:
        assert (await source.root()).data == IMAGE.manifest


async def test_an_image_without_a_name(tmp_path: Path, writer: Writer) -> None:
    await writer.image(ArchiveDestination(str(tmp_path / "image.tar")))
    assert json.loads(member(tmp_path / "image.tar", "manifest.json"))[0]["RepoTags"] is None
    assert "annotations" not in json.loads(member(tmp_path / "image.tar", "index.json"))["manifests"][0]


async def test_the_order_of_coming_does_not_matter(tmp_path: Path, writer: Writer) -> None:
    files = []
    for turn in (1, -1):
        path = tmp_path / f"{turn}.tar"
        async with ArchiveDestination(str(path), NAMES) as destination:
            if turn < 0:
                await writer.layers(destination, IMAGE.layers[::-1])
            await writer.blobs(destination)
            await destination.finish(document(IMAGE.manifest))
        files.append(path.read_bytes())
    assert files[0] == files[1]
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in tar} == {
            (0, 0, 0, "", "")
        }
        blobs = [info.name for info in tar if info.name.startswith("blobs/sha256/")]
    names = [IMAGE.digest, oci.digest(IMAGE.config), *(layer.digest for layer in IMAGE.layers)]
    assert blobs == ["blobs/" + name.replace(":", "/") for name in names]


@pytest.mark.parametrize(
    ("architecture", "chosen"), [("s390x", OTHER), (oci.ARCHITECTURE, IMAGE), ("x", IMAGE)]
)
async def test_of_an_index_docker_gets_the_image_of_the_platform(
    tmp_path: Path, writer: Writer, architecture: str, chosen: oci.Image
) -> None:
    path = tmp_path / "image.tar"
    destination = ArchiveDestination(str(path), NAMES, platform=Platform("linux", architecture))
    root = await writer.index(destination, IMAGE, OTHER)
    assert json.loads(member(path, "index.json"))["manifests"][0]["digest"] == root.digest
    (saved,) = json.loads(member(path, "manifest.json"))
    assert member(path, saved["Config"]) == chosen.config
    async with ArchiveImageSource(str(path), None) as source:
        assert (await source.root()).data == root.data


async def test_what_is_not_finished_leaves_nothing(tmp_path: Path, writer: Writer) -> None:
    before = set(tmp_path.rglob("*"))
    async with ArchiveDestination(str(tmp_path / "image.tar")) as destination:
        await writer.blobs(destination)
        (writer.scratch / "layer").unlink()
    assert set(tmp_path.rglob("*")) == before


async def test_an_archive_is_replaced_at_the_end(tmp_path: Path, writer: Writer) -> None:
    path = tmp_path / "image.tar"
    await writer.image(ArchiveDestination(str(path)), OTHER)
    before = path.read_bytes()
    async with ArchiveDestination(str(path)) as destination:
        await writer.blobs(destination)
        assert path.read_bytes() == before
        await destination.finish(document(IMAGE.manifest))
    assert path.read_bytes() != before
    assert {name.name for name in tmp_path.iterdir()} == {"image.tar", "scratch"}


class TestOtherForms:
    async def refused(self, path: Path, match: str) -> None:
        before = set(path.parent.rglob("*"))
        with pytest.raises(DestinationUnusable, match=match):
            async with ArchiveDestination(str(path)):
                pass
        assert set(path.parent.rglob("*")) == before

    async def test_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "dst").mkdir()
        await self.refused(tmp_path / "dst", "is a directory")

    async def test_a_letter(self, tmp_path: Path) -> None:
        (tmp_path / "dst").write_bytes(b"Dear Sir or Madam")
        await self.refused(tmp_path / "dst", "is no tar archive")

    async def test_a_device(self, tmp_path: Path) -> None:
        with pytest.raises(DestinationUnusable, match="is no file"):
            async with ArchiveDestination("/dev/null"):
                pass

    async def test_a_place_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DestinationUnusable, match="is no directory"):
            async with ArchiveDestination(str(tmp_path / "not/there.tar")):
                pass

    async def test_an_empty_file_is_none(self, tmp_path: Path, writer: Writer) -> None:
        (tmp_path / "dst").touch()
        await writer.image(ArchiveDestination(str(tmp_path / "dst")))
        assert tarfile.is_tarfile(tmp_path / "dst")
