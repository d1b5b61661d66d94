"""OCI layouts: which image is meant, for which platform, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fetcher.errors import FormatError, InvalidReference, SourceNotFound, VerificationError
from fetcher.images.choosing import choose_image
from fetcher.images.layout_source import LayoutImageSource
from fetcher.images.naming import split_layout
from fetcher.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Platform,
    parse_index,
)
from fetcher.oci_layout import LayoutDirectory, OciLayout

pytestmark = pytest.mark.anyio

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
CONFIG = "application/vnd.oci.image.config.v1+json"
TAG = "org.opencontainers.image.ref.name"
CONTAINERD = "io.containerd.image.name"


class Writer:
    """Writes a layout's documents; each method gives a descriptor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs/sha256").mkdir(parents=True)

    def document(
        self, media_type: str, value: object, extra: Mapping[str, object] | None = None
    ) -> dict[str, object]:
        data = json.dumps(value).encode()
        name = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs/sha256" / name).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data), **(extra or {})}

    def manifest(
        self,
        layer: str,
        extra: Mapping[str, object] | None = None,
        *,
        media_type: str = OCI_MANIFEST,
        architecture: str = "amd64",
    ) -> dict[str, object]:
        config = self.document(CONFIG, {"os": "linux", "architecture": architecture})
        blob = {"mediaType": "layer", "digest": f"sha256:{layer * 64}", "size": 1}
        value = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [blob]}
        return self.document(media_type, value, extra)

    def index(
        self,
        *entries: dict[str, object],
        extra: Mapping[str, object] | None = None,
        media_type: str = OCI_INDEX,
    ) -> dict[str, object]:
        value = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
        return self.document(media_type, value, extra)

    def finish(self, *entries: dict[str, object]) -> str:
        """Write index.json; the layout's directory."""
        value = {"schemaVersion": 2, "manifests": list(entries)}
        (self.directory / "index.json").write_text(json.dumps(value))
        return str(self.directory)

    def path(self, entry: dict[str, object]) -> Path:
        return self.directory / "blobs" / str(entry["digest"]).replace(":", "/")


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "layout")


def tagged(name: str, key: str = TAG) -> dict[str, dict[str, str]]:
    return {"annotations": {key: name}}


def platform(architecture: str) -> dict[str, dict[str, str]]:
    return {"platform": {"os": "linux", "architecture": architecture}}


async def layer(layout: str, tag: str | None = None, wanted: Platform | None = AMD64) -> str:
    """The digit of which the chosen image's one layer is named."""
    async with LayoutImageSource(layout, tag) as source:
        chosen = await choose_image(source, wanted)
    (found,) = chosen.parsed.layers
    return found.digest[-1]


async def test_the_only_image_needs_no_tag(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", tagged("latest")))
    assert await layer(layout) == await layer(layout, "latest") == "1"


async def test_one_image_under_several_tags_needs_none_either(writer: Writer) -> None:
    assert await layer(writer.finish(*(writer.manifest("1", tagged(tag)) for tag in ("one", "other")))) == "1"


async def test_of_several_images_one_must_be_named(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", tagged("one")), writer.manifest("2", tagged("two")))
    assert (await layer(layout, "one"), await layer(layout, "two")) == ("1", "2")
    with pytest.raises(SourceNotFound, match=r"several images: name one of one, two$"):
        await layer(layout)
    with pytest.raises(SourceNotFound, match=r"no image 'three'; it has one, two$"):
        await layer(layout, "three")


@pytest.mark.parametrize("name", ["docker.io/library/python:3", "python:3", "docker.io/python:3"])
async def test_a_name_of_containerds_is_taken_too_in_full_or_not(writer: Writer, name: str) -> None:
    layout = writer.finish(
        writer.manifest("1", tagged("docker.io/library/python:3", CONTAINERD)),
        writer.manifest("2", tagged("x")),
    )
    assert await layer(layout, name) == "1"


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
async def test_an_index_is_followed_to_the_platform(writer: Writer, media_type: str) -> None:
    kind = OCI_MANIFEST if media_type == OCI_INDEX else DOCKER_MANIFEST
    layout = writer.finish(
        writer.index(
            writer.manifest("1", platform("amd64"), media_type=kind),
            writer.manifest("2", platform("arm64"), media_type=kind),
            writer.manifest("3", platform("unknown"), media_type=kind),
            media_type=media_type,
            extra=tagged("latest"),
        )
    )
    assert (await layer(layout), await layer(layout, wanted=ARM64)) == ("1", "2")
    with pytest.raises(
        SourceNotFound, match=r"no image for linux/s390x; there is: linux/amd64, linux/arm64,"
    ):
        await layer(layout, wanted=Platform("linux", "s390x"))


async def test_indexes_may_be_nested_but_not_for_ever(writer: Writer) -> None:
    entry = writer.manifest("1", platform("amd64"))
    for _ in range(4):
        entry = writer.index(entry)
    assert await layer(writer.finish(entry)) == "1"
    with pytest.raises(FormatError, match="indexes within each other"):
        await layer(writer.finish(writer.index(entry)))


async def test_a_layout_may_list_an_image_once_for_each_platform(writer: Writer) -> None:
    entries = [
        writer.manifest("1", platform("amd64") | tagged("v1")),
        writer.manifest("2", platform("arm64") | tagged("v1")),
        writer.manifest("3", tagged("v2")),
    ]
    layout = writer.finish(*entries)
    assert (await layer(layout, "v1"), await layer(layout, "v1", ARM64)) == ("1", "2")
    root = OciLayout(LayoutDirectory(layout)).root("v1")
    assert root.media_type == OCI_INDEX
    assert [(entry.descriptor.digest, entry.platform) for entry in parse_index(root.data)] == [
        (entries[0]["digest"], AMD64),
        (entries[1]["digest"], ARM64),
    ]
    assert b"annotations" not in root.data
    assert root.digest == f"sha256:{hashlib.sha256(root.data).hexdigest()}"


async def test_the_image_of_another_platform_is_not_taken_for_one_that_was_asked_for(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", platform("arm64"), architecture="arm64"))
    with pytest.raises(SourceNotFound, match="no image for linux/amd64; there is: linux/arm64"):
        await layer(layout)
    assert await layer(layout, wanted=ARM64) == "1"
    assert await layer(layout, wanted=None) == "1"


async def test_what_is_no_image_is_left_out(writer: Writer) -> None:
    other = writer.document("application/vnd.example", {"schemaVersion": 2}, tagged("latest"))
    assert await layer(writer.finish(other, writer.manifest("1"))) == "1"
    with pytest.raises(SourceNotFound, match=r"has no image$"):
        await layer(writer.finish(other))


async def test_a_manifest_with_another_digest_is_refused(writer: Writer) -> None:
    entry = writer.manifest("1")
    layout = writer.finish(entry)
    writer.path(entry).write_bytes(writer.path(entry).read_bytes().replace(b"layers", b"layerz"))
    with pytest.raises(VerificationError, match="another digest"):
        await layer(layout)


async def test_what_is_missing_is_named(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"no OCI layout: it has no index.json"):
        await layer(str(tmp_path))
    entry = writer.manifest("1")
    layout = writer.finish(entry)
    writer.path(entry).unlink()
    with pytest.raises(SourceNotFound, match=f"lacks blobs/sha256/{str(entry['digest'])[7:]}"):
        await layer(layout)


async def test_a_layer_that_is_missing_is_named(writer: Writer) -> None:
    async with LayoutImageSource(writer.finish(writer.manifest("1")), None) as source:
        with pytest.raises(SourceNotFound, match=f"lacks blobs/sha256/{'1' * 64}"):
            source.blob((await choose_image(source, None)).parsed.layers[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps({"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1, "mediaType": OCI_INDEX}]}),
    ],
)
async def test_an_index_that_is_damaged_is_named(writer: Writer, text: str) -> None:
    layout = writer.finish()
    Path(layout, "index.json").write_text(text)
    with pytest.raises(FormatError, match=r"index\.json: not an image index"):
        await layer(layout)


async def test_a_manifest_that_is_damaged_is_named(writer: Writer) -> None:
    layout = writer.finish(writer.document(OCI_MANIFEST, {"schemaVersion": 2, "layers": 1}))
    with pytest.raises(FormatError, match=r"sha256:[0-9a-f]{12} is not an image manifest"):
        await layer(layout)


async def test_a_document_may_not_be_huge(writer: Writer) -> None:
    entry = writer.manifest("1")
    layout = writer.finish(entry)
    writer.path(entry).write_bytes(bytes((16 << 20) + 1))
    with pytest.raises(FormatError, match="more than the 16777216 bytes"):
        await layer(layout)


async def test_a_blobs_path_stays_in_the_layout(writer: Writer) -> None:
    layout = OciLayout(LayoutDirectory(writer.finish()))
    with pytest.raises(InvalidReference):
        layout.document(Descriptor("sha256:../../../etc/passwd", 1, CONFIG, {}))
    with pytest.raises(InvalidReference):
        layout.blob(Descriptor("sha256:../../../etc/passwd", 1, "layer", {}))


async def test_directory_and_tag_may_both_have_colons(tmp_path: Path) -> None:
    for name in ("plain", "with:colon"):
        (tmp_path / name).mkdir()
    plain, colon = str(tmp_path / "plain"), str(tmp_path / "with:colon")
    assert split_layout(plain) == (plain, None)
    assert split_layout(f"{plain}:tag") == (plain, "tag")
    assert split_layout(f"{plain}:docker.io/x:tag") == (plain, "docker.io/x:tag")
    assert split_layout(colon) == (colon, None)
    assert split_layout(f"{colon}:tag") == (colon, "tag")
    with pytest.raises(SourceNotFound, match="there is no directory /nowhere"):
        split_layout("/nowhere:tag")
