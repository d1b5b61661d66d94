"""Writing to OCI layouts, read back by our own reader, which skopeo's layouts are tested against."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fetcher.errors import DestinationUnusable, StoreError, VerificationError
from fetcher.images.layout_destination import LayoutDestination
from fetcher.oci_layout import LayoutDirectory, OciLayout
from tests.fetcher.destinations import IMAGE, OTHER, Writer, descriptor, document
from tests.fetcher.small_disk import small_disk

pytestmark = pytest.mark.anyio


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Writer(scratch)


def root_of(directory: Path, tag: str | None) -> str:
    return OciLayout(LayoutDirectory(str(directory))).root(tag).digest


def files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


async def test_a_new_layout_is_whole(tmp_path: Path, writer: Writer) -> None:
    await writer.image(LayoutDestination(str(tmp_path / "not/there/yet"), "v1"))
    directory = tmp_path / "not/there/yet"
    assert root_of(directory, "v1") == IMAGE.digest
    assert json.loads((directory / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    for name, data in (IMAGE.blobs | {IMAGE.digest: IMAGE.manifest}).items():
        assert (directory / "blobs" / name.replace(":", "/")).read_bytes() == data
    assert len(files_below(directory)) == 2 + 2 + len(IMAGE.blobs) + 1


async def test_other_images_stay_and_a_tag_moves(tmp_path: Path, writer: Writer) -> None:
    for tag, image in (("a", IMAGE), ("b", OTHER), ("a", OTHER), (None, IMAGE), (None, OTHER), ("c", IMAGE)):
        await writer.image(LayoutDestination(str(tmp_path / "layout"), tag), image)
    index = json.loads((tmp_path / "layout/index.json").read_bytes())
    listed = [
        (entry.get("annotations", {}).get("org.opencontainers.image.ref.name"), entry["digest"])
        for entry in index["manifests"]
    ]
    assert listed == [("b", OTHER.digest), ("a", OTHER.digest), (None, OTHER.digest), ("c", IMAGE.digest)]


async def test_what_an_index_has_beside_stays(tmp_path: Path, writer: Writer) -> None:
    await writer.image(LayoutDestination(str(tmp_path / "layout"), "a"))
    path = tmp_path / "layout/index.json"
    index = json.loads(path.read_bytes())
    index["annotations"] = {"of": "somebody"}
    index["manifests"].append({"mediaType": "application/x", "digest": IMAGE.digest, "size": 1, "x": 2})
    path.write_text(json.dumps(index))
    await writer.image(LayoutDestination(str(tmp_path / "layout"), "b"))
    after = json.loads(path.read_bytes())
    assert after["annotations"] == {"of": "somebody"}
    assert after["manifests"][:-1] == index["manifests"]


async def test_an_index_goes_with_all_its_images(tmp_path: Path, writer: Writer) -> None:
    root = await writer.index(LayoutDestination(str(tmp_path / "layout"), "all"), IMAGE, OTHER)
    assert root_of(tmp_path / "layout", "all") == root.digest
    for image in (IMAGE, OTHER):
        assert (tmp_path / "layout/blobs" / image.digest.replace(":", "/")).read_bytes() == image.manifest


async def test_what_is_not_finished_leaves_nothing(tmp_path: Path, writer: Writer) -> None:
    async with LayoutDestination(str(tmp_path / "new/layout"), "v1") as destination:
        await writer.blobs(destination)
    assert not (tmp_path / "new").exists()


async def test_what_is_not_finished_leaves_an_older_image_as_it_was(tmp_path: Path, writer: Writer) -> None:
    directory = tmp_path / "layout"
    await writer.image(LayoutDestination(str(directory), "v1"), OTHER)
    before = files_below(directory)
    async with LayoutDestination(str(directory), "v1") as destination:
        await writer.blobs(destination)
        assert files_below(directory) > before
    assert files_below(directory) == before
    assert root_of(directory, "v1") == OTHER.digest


async def test_blobs_that_another_writer_counts_on_stay(tmp_path: Path, writer: Writer) -> None:
    """One gives up while the other has found the first one's blobs to be there."""
    directory = str(tmp_path / "layout")
    async with LayoutDestination(directory, "second") as second:
        async with LayoutDestination(directory, "first") as first:
            await writer.blobs(first)
        await writer.blobs(second)
        await second.finish(document(IMAGE.manifest))
    for name in IMAGE.blobs:
        assert (tmp_path / "layout/blobs" / name.replace(":", "/")).exists()


async def test_a_file_that_is_not_the_blob_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"shorter")
    async with LayoutDestination(str(tmp_path / "layout"), None) as destination:
        with pytest.raises(VerificationError, match="has 7 bytes"):
            await destination.put_file(descriptor(b"longer than that"), str(tmp_path / "blob"))


class TestOtherForms:
    """DST is there, and is something else: an error, and nothing is touched."""

    async def refused(self, directory: Path, match: str) -> None:
        before = files_below(directory.parent)
        with pytest.raises(DestinationUnusable, match=match):
            async with LayoutDestination(str(directory), "v1"):
                pass
        assert files_below(directory.parent) == before

    async def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "dst").write_bytes(b"")
        await self.refused(tmp_path / "dst", "is no directory")

    async def test_a_dangling_link(self, tmp_path: Path) -> None:
        (tmp_path / "dst").symlink_to("nowhere")
        await self.refused(tmp_path / "dst", "is no directory")

    async def test_a_directory_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst/letter.txt").write_bytes(b"Dear")
        await self.refused(tmp_path / "dst", "is no OCI layout")

    @pytest.mark.parametrize("index", [b"{", b"[]", b'{"manifests": 3}'])
    async def test_a_broken_layout(self, tmp_path: Path, index: bytes) -> None:
        (tmp_path / "dst").mkdir()
        (tmp_path / "dst/index.json").write_bytes(index)
        await self.refused(tmp_path / "dst", "not an image index")

    async def test_an_empty_directory_is_none(self, tmp_path: Path, writer: Writer) -> None:
        (tmp_path / "dst").mkdir()
        await writer.image(LayoutDestination(str(tmp_path / "dst"), "v1"))
        assert root_of(tmp_path / "dst", "v1") == IMAGE.digest


@pytest.mark.root
async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(os.urandom(2 << 20))
    data = (tmp_path / "blob").read_bytes()
    with small_disk(str(tmp_path / "disk"), kilobytes=1024) as disk:
        with pytest.raises(StoreError, match="is full") as raised:
            async with LayoutDestination(f"{disk}/layout", "v1") as destination:
                await destination.put_file(descriptor(data), str(tmp_path / "blob"))
        assert raised.value.errno == errno.ENOSPC
        assert not os.path.exists(f"{disk}/layout")
