"""Conversions between a source and a destination in memory: documents, sharing, order, and what is left."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from fetcher.convert import Compressors, LayerFormat, LayerOptions
from fetcher.errors import FormatError, RegistryUnavailable, SourceNotFound, StoreError, VerificationError
from fetcher.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Platform
from fetcher.record import OpenedFile
from fetcher.toc import TOC_NAME
from snapshotter.cli.exit_codes import sole_cause
from snapshotter.convert.choice import LayerChoice
from snapshotter.convert.image import ConvertedImage, convert_image
from snapshotter.convert.progress import ConvertProgress, LayerState, NoProgress
from snapshotter.convert.scratch import scratch_directory
from snapshotter.convert.source_image import OptionsFor, SourceImage
from tests import oci
from tests.estargz import build, dir, file, plain
from tests.fetcher.converting import archived
from tests.snapshotter.converting import (
    FAST,
    Json,
    MemoryDestination,
    MemorySource,
    Shelf,
    Watcher,
    always,
    encoded,
    for_platform,
)

pytestmark = pytest.mark.anyio

BOTTOM = plain([dir("a/"), file("a/1", b"one" * 1000)])
MIDDLE = plain([file("a/2", b"two" * 1000)])
TOP = plain([file("a/3", b"three" * 1000)])


@pytest.fixture
def anyio_backend() -> str:
    """Commands run on asyncio, as gRPC does."""
    return "asyncio"


@pytest.fixture(scope="module")
def compressors() -> Iterator[Compressors]:
    with Compressors(1) as compressors:
        yield compressors


class Converting:
    """Conversions in a scratch directory that has to be empty of what they need no more."""

    def __init__(self, directory: Path, compressors: Compressors) -> None:
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self.blobs = directory / "blobs"
        self.blobs.mkdir()
        self.compressors = compressors
        self.destination = MemoryDestination()
        self.source: MemorySource

    async def __call__(
        self,
        shelf: Shelf,
        root: Json,
        options_for: OptionsFor | None = None,
        *,
        platform: Platform | None = None,
        all_platforms: bool = False,
        progress: ConvertProgress | None = None,
    ) -> ConvertedImage:
        self.source = MemorySource(shelf, root, self.blobs)
        return await convert_image(
            self.source,
            self.destination,
            options_for=options_for or always(FAST),
            platform=platform,
            all_platforms=all_platforms,
            compressors=self.compressors,
            scratch=str(self.scratch),
            progress=progress or NoProgress(),
        )

    def layers(self, manifest: Json) -> list[bytes]:
        """The blobs of a manifest's layers."""
        layers = manifest["layers"]
        assert isinstance(layers, list)
        return [self.destination.shelf.content[layer["digest"]] for layer in layers]

    def config(self, manifest: Json) -> Json:
        config = manifest["config"]
        assert isinstance(config, dict)
        return self.destination.shelf.json(config["digest"])


@pytest.fixture
def convert(tmp_path: Path, compressors: Compressors) -> Converting:
    return Converting(tmp_path, compressors)


async def test_a_manifest_keeps_what_nobody_knows(convert: Converting) -> None:
    shelf = Shelf()
    source = shelf.image([BOTTOM, TOP])
    result = await convert(shelf, source)
    manifest, before = convert.destination.root, shelf.json(source["digest"])
    assert result.root.media_type == OCI_MANIFEST
    assert list(manifest) == list(before)
    assert manifest["annotations"] == before["annotations"]
    for blob, layer in zip(convert.layers(manifest), manifest["layers"], strict=True):
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
        assert layer["size"] == len(blob)
        assert layer["x-unknown"] == 1
        assert set(layer["annotations"]) == {
            "org.example.note",
            "containerd.io/snapshot/stargz/toc.digest",
            "io.containers.estargz.uncompressed-size",
        }
        assert layer["annotations"]["io.containers.estargz.uncompressed-size"] == str(
            len(gzip.decompress(blob))
        )
    assert list(convert.scratch.iterdir()) == []
    assert result.layers.converted == 2


async def test_a_config_keeps_everything_but_the_diff_ids(convert: Converting) -> None:
    shelf = Shelf()
    source = shelf.image([BOTTOM, TOP])
    await convert(shelf, source)
    config = convert.config(convert.destination.root)
    before = shelf.json(shelf.json(source["digest"])["config"]["digest"])
    assert list(config) == list(before)
    diff_ids = [oci.digest(gzip.decompress(blob)) for blob in convert.layers(convert.destination.root)]
    assert config == before | {"rootfs": {"type": "layers", "diff_ids": diff_ids}}


async def test_names_come_last(convert: Converting) -> None:
    """Layers and config before their manifest, manifests before the index."""
    shelf = Shelf()
    index = shelf.index(for_platform(shelf.image([BOTTOM, TOP])), for_platform(shelf.image([TOP]), "s390x"))
    await convert(shelf, index, all_platforms=True)
    seen: set[object] = set()
    for name in convert.destination.order:
        media_type = convert.destination.shelf.media_types[name]
        if "json" in media_type and "config" not in media_type:
            value = convert.destination.shelf.json(name)
            below = [*value.get("manifests", []), *value.get("layers", [])]
            assert {one["digest"] for one in below} <= seen
            assert "config" not in value or value["config"]["digest"] in seen
        seen.add(name)
    assert convert.destination.finished is not None
    assert convert.destination.order[-1] == convert.destination.finished.digest


async def test_dockers_image_becomes_ocis(convert: Converting) -> None:
    shelf = Shelf()
    index = shelf.index(for_platform(shelf.image([BOTTOM], docker=True)), docker=True)
    result = await convert(shelf, index, all_platforms=True)
    assert result.root.media_type == convert.destination.root["mediaType"] == OCI_INDEX
    (entry,) = convert.destination.root["manifests"]
    assert entry["mediaType"] == OCI_MANIFEST
    manifest = convert.destination.shelf.json(entry["digest"])
    assert manifest["config"]["mediaType"] == oci.CONFIG
    assert "docker" not in str(manifest)


async def test_an_uncompressed_layer_and_zstd(convert: Converting) -> None:
    shelf = Shelf()
    options = LayerOptions(format=LayerFormat.ZSTD_CHUNKED)
    await convert(shelf, shelf.image([BOTTOM], uncompressed=True), always(options))
    (layer,) = convert.destination.root["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+zstd"
    assert "io.containers.zstd-chunked.manifest-checksum" in layer["annotations"]


async def test_ways_to_the_old_content_go(convert: Converting) -> None:
    shelf = Shelf()
    manifest = shelf.json(shelf.image([BOTTOM])["digest"])
    for described in (manifest["config"], manifest["layers"][0]):
        described.update(data="AAAA", urls=["https://elsewhere.example/"])
    await convert(shelf, shelf.add(encoded(manifest), OCI_MANIFEST))
    text = str(convert.destination.root)
    assert "elsewhere" not in text
    assert "AAAA" not in text


class TestIndexes:
    async def test_one_platform_becomes_a_manifest(self, convert: Converting) -> None:
        shelf = Shelf()
        index = shelf.index(
            for_platform(shelf.image([BOTTOM]), "s390x"), for_platform(shelf.image([TOP]), "riscv64")
        )
        result = await convert(shelf, index, platform=Platform("linux", "riscv64"))
        assert result.root.media_type == OCI_MANIFEST
        assert convert.source.asked == [TOP.digest]

    async def test_a_platform_that_is_not_there(self, convert: Converting) -> None:
        shelf = Shelf()
        index = shelf.index(for_platform(shelf.image([BOTTOM]), "s390x"))
        with pytest.raises(SourceNotFound, match="no image for linux/riscv64"):
            await convert(shelf, index, platform=Platform("linux", "riscv64"))

    async def test_all_platforms_keep_their_places(self, convert: Converting) -> None:
        shelf = Shelf()
        index = shelf.index(
            {**for_platform(shelf.image([BOTTOM]), "s390x"), "x": 1},
            for_platform(shelf.image([BOTTOM, TOP]), "riscv64"),
        )
        await convert(shelf, index, all_platforms=True)
        root = convert.destination.root
        assert root["annotations"] == {"org.example.of": "the index"}
        first, second = root["manifests"]
        assert first["platform"]["architecture"] == "s390x"
        assert first["x"] == 1
        assert second["platform"]["architecture"] == "riscv64"
        for entry, count in ((first, 1), (second, 2)):
            assert entry["size"] == len(convert.destination.shelf.content[entry["digest"]])
            assert len(convert.layers(convert.destination.shelf.json(entry["digest"]))) == count

    async def test_a_layer_that_images_share_is_converted_once(self, convert: Converting) -> None:
        shelf = Shelf()
        index = shelf.index(
            for_platform(shelf.image([BOTTOM, TOP, BOTTOM]), "s390x"),
            for_platform(shelf.image([BOTTOM, MIDDLE]), "riscv64"),
        )
        watcher = Watcher()
        result = await convert(shelf, index, all_platforms=True, progress=watcher)
        assert sorted(convert.source.asked) == sorted({BOTTOM.digest, TOP.digest, MIDDLE.digest})
        assert [states.count(LayerState.CONVERTING) for states in watcher.states.values()] == [1, 1, 1]
        assert result.layers.converted == 3

    async def test_an_index_within_an_index(self, convert: Converting) -> None:
        shelf = Shelf()
        inner = shelf.index(for_platform(shelf.image([BOTTOM])))
        await convert(shelf, shelf.index(inner), all_platforms=True)
        (entry,) = convert.destination.root["manifests"]
        (image,) = convert.destination.shelf.json(entry["digest"])["manifests"]
        assert convert.layers(convert.destination.shelf.json(image["digest"]))

    def attested(self, shelf: Shelf) -> Json:
        """An index as BuildKit writes it: an image, and an attestation that refers to it."""
        image = for_platform(shelf.image([BOTTOM]))
        statement = shelf.add(b'{"_type": "in-toto"}', "application/vnd.in-toto+json")
        config = shelf.add(b'{"architecture": "unknown", "os": "unknown"}', oci.CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [statement]}
        attestation = shelf.add(encoded(manifest), OCI_MANIFEST)
        return shelf.index(
            image,
            {
                **attestation,
                "platform": {"os": "unknown", "architecture": "unknown"},
                "annotations": {
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": image["digest"],
                },
            },
        )

    async def test_an_attestation_is_kept_and_refers_to_the_new_image(self, convert: Converting) -> None:
        shelf = Shelf()
        index = self.attested(shelf)
        await convert(shelf, index, all_platforms=True)
        image, attestation = convert.destination.root["manifests"]
        before = shelf.json(index["digest"])["manifests"][1]
        assert attestation == before | {
            "annotations": before["annotations"] | {"vnd.docker.reference.digest": image["digest"]}
        }
        manifest = convert.destination.shelf.json(attestation["digest"])
        assert convert.layers(manifest) == [b'{"_type": "in-toto"}']
        assert convert.config(manifest)["os"] == "unknown"

    async def test_for_one_platform_it_goes(self, convert: Converting) -> None:
        shelf = Shelf()
        await convert(shelf, self.attested(shelf))
        assert set(convert.destination.shelf.media_types.values()) == {
            oci.CONFIG,
            OCI_MANIFEST,
            "application/vnd.oci.image.layer.v1.tar+gzip",
        }


class TestKeptLayers:
    READY = build([dir("b/"), file("b/ready", b"ready" * 1000)])

    async def test_a_layer_in_the_format_stays_to_the_byte(self, convert: Converting) -> None:
        shelf = Shelf()
        source = shelf.image([self.READY, TOP], annotate=True)
        result = await convert(shelf, source, LayerChoice(FAST, rebuild=False))
        first, second = convert.destination.root["layers"]
        assert first["digest"] == self.READY.digest
        assert second["digest"] != TOP.digest
        diff_ids = convert.config(convert.destination.root)["rootfs"]["diff_ids"]
        assert diff_ids[0] == self.READY.diff_id
        assert (result.layers.converted, result.layers.kept) == (1, 1)

    async def test_an_image_of_such_layers_stays_as_a_whole(self, convert: Converting) -> None:
        shelf = Shelf()
        source = shelf.image([self.READY], annotate=True)
        result = await convert(shelf, source, LayerChoice(FAST, rebuild=False))
        assert result.root.digest == source["digest"]

    @pytest.mark.parametrize(
        "why", ["rebuild", "another format", "no annotation", "a wrong annotation", "no size"]
    )
    async def test_it_is_converted_otherwise(self, convert: Converting, why: str) -> None:
        shelf = Shelf()
        source = shelf.image([self.READY], annotate=why != "no annotation")
        manifest = shelf.json(source["digest"])
        annotations = manifest["layers"][0]["annotations"]
        if why == "a wrong annotation":
            annotations["containerd.io/snapshot/stargz/toc.digest"] = oci.digest(b"")
        if why == "no size":
            del annotations["io.containers.estargz.uncompressed-size"]
        options = LayerOptions(format=LayerFormat.ZSTD_CHUNKED) if why == "another format" else FAST
        choice = LayerChoice(options, rebuild=why == "rebuild")
        result = await convert(shelf, shelf.add(encoded(manifest), OCI_MANIFEST), choice)
        assert (result.layers.converted, result.layers.kept) == (1, 0)

    async def test_what_the_destination_has_is_not_fetched(self, convert: Converting) -> None:
        shelf = Shelf()
        convert.destination.shelf.add(self.READY.blob, self.READY.media_type)
        source = shelf.image([self.READY], annotate=True)
        watcher = Watcher()
        await convert(shelf, source, LayerChoice(FAST, rebuild=False), progress=watcher)
        assert watcher.states == {0: [LayerState.KEPT]}


class TestDeciding:
    async def test_files_come_first_in_the_layer_that_has_them(self, convert: Converting) -> None:
        shelf = Shelf()
        upper = plain([file("a/2", b"of the upper layer"), file("b", b"b")])
        source = shelf.image([plain([dir("a/"), file("a/1", b"1"), file("a/2", b"2")]), upper, TOP])
        files = [OpenedFile(path) for path in ("a/2", "b", "a/1", "not there")]
        await convert(shelf, source, LayerChoice(FAST, files=files, rebuild=False))
        names = [
            [entry.name for entry in archived(gzip.decompress(blob))]
            for blob in convert.layers(convert.destination.root)
        ]
        assert names == [
            ["a", "a/1", ".prefetch.landmark", "a/2", TOC_NAME],
            ["a/2", "b", ".prefetch.landmark", TOC_NAME],
            [".no.prefetch.landmark", "a/3", TOC_NAME],
        ]

    async def test_whoever_decides_may_look_into_every_layer(self, convert: Converting) -> None:
        """Though more layers than are in hand at a time."""
        shelf = Shelf()
        layers = [plain([file(f"f{number}", b"x" * number)]) for number in range(12)]
        seen: list[list[bytes]] = []

        async def options_for(image: SourceImage, number: int) -> LayerOptions:
            seen.append([Path(await image.fetch(other)).read_bytes() for other in range(len(image.layers))])
            return FAST

        with anyio.fail_after(60):
            await convert(shelf, shelf.image(layers), options_for)
        assert seen[0] == [layer.blob for layer in layers]

    async def test_equal_decisions_are_one_conversion(self, convert: Converting) -> None:
        shelf = Shelf()
        watcher = Watcher()
        options = [FAST, FAST, LayerOptions(level=2)]

        async def options_for(image: SourceImage, number: int) -> LayerOptions:
            return options[number]

        await convert(shelf, shelf.image([TOP, TOP, TOP]), options_for, progress=watcher)
        assert watcher.states[0].count(LayerState.CONVERTING) == 2


class TestFailures:
    @pytest.mark.parametrize(
        ("media_type", "message"),
        [
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "not distributed"),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "not distributed"),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
            ("application/vnd.oci.image.layer.v1.tar+lzma", "none that is known"),
            ("", "no media type"),
        ],
    )
    async def test_a_layer_of_another_kind_is_refused_before_any_is_fetched(
        self, convert: Converting, media_type: str, message: str
    ) -> None:
        shelf = Shelf()
        manifest = shelf.json(shelf.image([BOTTOM, TOP])["digest"])
        manifest["layers"][1]["mediaType"] = media_type
        with pytest.raises(FormatError, match=message) as raised:
            await convert(shelf, shelf.add(encoded(manifest), OCI_MANIFEST))
        assert "layer 2" in str(raised.value)
        assert convert.source.asked == []

    async def test_an_artifact_is_no_image(self, convert: Converting) -> None:
        shelf = Shelf()
        manifest = shelf.json(shelf.image([BOTTOM])["digest"])
        manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
        with pytest.raises(FormatError, match="helm"):
            await convert(shelf, shelf.add(encoded(manifest), OCI_MANIFEST))

    async def test_a_config_of_other_layers(self, convert: Converting) -> None:
        shelf = Shelf()
        source = shelf.image([BOTTOM], config={"rootfs": {"diff_ids": [TOP.diff_id] * 3}})
        with pytest.raises(FormatError, match="lists 1 layers, and its config 3"):
            await convert(shelf, source)

    async def failed(self, convert: Converting, shelf: Shelf, source: Json) -> Exception:
        with pytest.raises(ExceptionGroup) as raised:
            await convert(shelf, source)
        assert convert.destination.finished is None
        return sole_cause(raised.value)

    async def test_a_layer_that_comes_with_other_content(self, convert: Converting) -> None:
        shelf = Shelf()
        source = shelf.image([BOTTOM, TOP])
        shelf.content[TOP.digest] = TOP.blob[:-1] + b"\x01"
        assert isinstance(await self.failed(convert, shelf, source), VerificationError)

    async def test_a_layer_that_is_no_tar(self, convert: Converting) -> None:
        shelf = Shelf()
        manifest = shelf.json(shelf.image([BOTTOM])["digest"])
        broken = shelf.add(gzip.compress(b"not a tar" * 1000), "application/vnd.oci.image.layer.v1.tar+gzip")
        manifest["layers"] = [broken]
        error = await self.failed(convert, shelf, shelf.add(encoded(manifest), OCI_MANIFEST))
        assert isinstance(error, FormatError)
        assert len(str(error).splitlines()) == 1

    async def test_a_destination_that_refuses(self, convert: Converting) -> None:
        async def refuse(descriptor: Descriptor) -> None:
            raise RegistryUnavailable("no", host="a.io", status=503)

        convert.destination = MemoryDestination(refuse=refuse)
        shelf = Shelf()
        error = await self.failed(convert, shelf, shelf.image([BOTTOM]))
        assert isinstance(error, RegistryUnavailable)

    async def test_a_cancellation_ends_the_thread_that_converts(self, convert: Converting) -> None:
        """Or files would still be written when the scratch directory is removed."""
        shelf = Shelf()
        large = plain([file(f"f{number}", os.urandom(1 << 20)) for number in range(24)])
        watcher = Watcher()
        with anyio.CancelScope() as scope:

            class Cancelling(Watcher):
                def done(self, number: int, count: int) -> None:
                    watcher.counts.setdefault((number, self.states[number][-1]), []).append(count)
                    if self.states[number][-1] is LayerState.CONVERTING:
                        anyio.from_thread.run_sync(scope.cancel)

            await convert(shelf, shelf.image([large]), progress=Cancelling())
        assert scope.cancelled_caught
        assert watcher.counts[0, LayerState.CONVERTING][-1] < len(large.blob)
        assert not [path for path in convert.scratch.iterdir() if path.name != "0001"]


async def test_progress_counts_bytes(convert: Converting) -> None:
    shelf = Shelf()
    watcher = Watcher()
    await convert(shelf, shelf.image([BOTTOM]), progress=watcher)
    assert watcher.states == {
        0: [LayerState.DOWNLOADING, LayerState.CONVERTING, LayerState.WRITING, LayerState.CONVERTED]
    }
    for state in (LayerState.DOWNLOADING, LayerState.CONVERTING):
        counts = watcher.counts[0, state]
        assert counts == sorted(counts)
        assert counts[-1] == watcher.totals[0, state] == len(BOTTOM.blob)


def test_the_scratch_directory_is_below_tmpdir_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_directory() as scratch:
        assert os.path.dirname(scratch) == str(tmp_path)
        Path(scratch, "layer").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match="scratch directory"), scratch_directory():
        pass
