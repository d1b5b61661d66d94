"""SOURCE: what a word means, and which layers it leads to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fetcher.errors import InvalidReference, NotEstargz, SourceNotFound, VerificationError
from fetcher.manifest import Platform
from fetcher.settings import RegistrySettings
from fetcher.sources import BlobSources
from fetcher.store import FileSource, LayerStore, RegistrySource, layer_key
from mounter.uses import Uses
from snapshotter.manual.errors import NoSuchLayer
from snapshotter.manual.layers import LayerOpener, OpenedLayer
from snapshotter.manual.source import SourceImage, absolute_source, pick_layer, resolve_source
from tests import estargz, oci
from tests.estargz import Layer, build, file
from tests.faulty_registry import FaultyRegistry
from tests.integration.manual import write_layout

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path / "root"))


@asynccontextmanager
async def resolved(text: str) -> AsyncIterator[SourceImage]:
    async with BlobSources(RegistrySettings()) as sources:
        yield await resolve_source(text, Platform.host(), sources, plain_http=True)


async def missing(text: str) -> None:
    async with resolved(text):
        pass


async def opened(store: LayerStore, image: SourceImage, *, unverified: bool = False) -> list[OpenedLayer]:
    uses = Uses(store.root)
    try:
        found = await LayerOpener(store, uses, allow_unverified_toc=unverified).open(image)
        assert all(one.layer in uses for one in found)
        return found
    finally:
        uses.close()


def layers(*names: str) -> list[Layer]:
    return [build([file(name, name.encode())]) for name in names]


class TestWords:
    """The word itself."""

    def test_a_path_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "layout").mkdir()
        (tmp_path / "layer.tar.gz").write_bytes(b"")
        assert absolute_source("layer.tar.gz") == f"{tmp_path}/layer.tar.gz"
        assert absolute_source("./none") == f"{tmp_path}/none"
        assert absolute_source("../none") == f"{tmp_path.parent}/none"
        assert absolute_source("oci:layout:v1") == f"oci:{tmp_path}/layout:v1"
        assert absolute_source("oci:layout") == f"oci:{tmp_path}/layout"
        with pytest.raises(SourceNotFound):
            absolute_source("oci:none:v1")

    def test_anything_else_is_an_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert absolute_source("python:3") == "docker.io/library/python:3"
        with pytest.raises(InvalidReference):
            absolute_source("Not an image")

    async def test_a_layer_is_picked_by_number_and_by_digest(self, tmp_path: Path) -> None:
        image = oci.image(layers("a", "b", "c"))
        digests = [layer.digest for layer in image.layers]
        async with resolved(write_layout(str(tmp_path / "layout"), image)) as found:
            assert [layer.digest for layer in found.layers] == digests
            for number, digest in enumerate(digests, start=1):
                for wanted in (str(number), digest, digest[7:19]):
                    (picked,) = pick_layer(found, wanted).layers
                    assert (picked.number, picked.digest) == (number, digest)
            for wanted in ("0", "4", "sha256:" + "0" * 64, digests[0][7:9], ""):
                with pytest.raises(NoSuchLayer):
                    pick_layer(found, wanted)


class TestOpening:
    """Which tables of contents are believed."""

    async def test_an_image_in_a_registry(self, store: LayerStore) -> None:
        image = oci.image(layers("a", "b"))
        with FaultyRegistry() as registry:
            reference = registry.add_image("name", image)
            async with resolved(reference) as found:
                keys = [one.layer for one in await opened(store, found)]
        assert keys == [layer_key(layer.digest, layer.toc_digest) for layer in image.layers]
        record = store.record(keys[0])
        assert record.sources == [RegistrySource(reference, True)]
        assert record.images == [reference]

    async def test_a_layer_that_is_here_is_not_read_again(self, store: LayerStore, tmp_path: Path) -> None:
        source = write_layout(str(tmp_path / "layout"), oci.image(layers("a")))
        async with resolved(source) as found:
            (first,) = await opened(store, found)
            blob = found.layers[0].source
            assert isinstance(blob, FileSource)
            os.truncate(blob.path, 0)
            assert await opened(store, SourceImage("other name", found.layers)) == [first]
        assert store.record(first.layer).images == [source, "other name"]

    async def test_a_lone_file_has_the_digest_of_its_bytes(self, store: LayerStore, tmp_path: Path) -> None:
        (layer,) = layers("a")
        path = tmp_path / "layer"
        path.write_bytes(layer.blob)
        async with resolved(str(path)) as image:
            (found,) = await opened(store, image)
        assert found == OpenedLayer(layer_key(layer.digest, layer.toc_digest), layer.digest)

    async def test_a_layouts_layer_without_annotation_is_believed_by_its_bytes(
        self, store: LayerStore, tmp_path: Path
    ) -> None:
        image = oci.image(layers("a"), annotate=False)
        source = write_layout(str(tmp_path / "layout"), image)
        async with resolved(source) as found:
            (layer,) = await opened(store, found)
            assert layer.digest == image.layers[0].digest
            other = build([file("other")])
            path = tmp_path / "layout/blobs" / layer.digest.replace(":", "/")
            path.write_bytes(other.blob)
            with pytest.raises(VerificationError, match=f"has the digest {other.digest}, and not"):
                await opened(store, found)

    async def test_a_registrys_layer_without_annotation_by_wish_alone(self, store: LayerStore) -> None:
        with FaultyRegistry() as registry:
            async with resolved(registry.add_image("name", oci.image(layers("a"), annotate=False))) as found:
                with pytest.raises(VerificationError, match="vouches for no table of contents"):
                    await opened(store, found)
                assert len(await opened(store, found, unverified=True)) == 1

    async def test_the_lowest_ordinary_layer_is_named(self, store: LayerStore, tmp_path: Path) -> None:
        ordinary = [estargz.plain([file(name)]) for name in ("b", "c")]
        source = write_layout(str(tmp_path / "layout"), oci.image([*layers("a"), *ordinary]))
        async with resolved(source) as found:
            with pytest.raises(
                NotEstargz, match=f"layer 2 .{ordinary[0].digest}. is no eStargz or zstd:chunked layer"
            ):
                await opened(store, found)

    async def test_a_layout_that_lacks_a_layer(self, tmp_path: Path) -> None:
        image = oci.image(layers("a", "b"))
        source = write_layout(str(tmp_path / "layout"), image)
        (tmp_path / "layout/blobs" / image.layers[1].digest.replace(":", "/")).unlink()
        with pytest.raises(SourceNotFound, match=f"lacks layer 2, {image.layers[1].digest}"):
            await missing(source)

    async def test_a_directory_is_no_layer(self, tmp_path: Path) -> None:
        with pytest.raises(SourceNotFound, match=r"is a directory, and no layer$"):
            await missing(str(tmp_path))
        (tmp_path / "index.json").write_text("{}")
        with pytest.raises(SourceNotFound, match=f"for an OCI layout, say oci:{tmp_path}$"):
            await missing(str(tmp_path))
