"""OCI layouts: which image is meant, for which platform, and what is wrong with one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from fetcher.errors import FormatError, InvalidReference, SourceNotFound, VerificationError
from fetcher.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Platform
from fetcher.oci_layout import OciLayout, split_layout

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
TAG = "org.opencontainers.image.ref.name"


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
        self, layer: str, extra: Mapping[str, object] | None = None, *, media_type: str = OCI_MANIFEST
    ) -> dict[str, object]:
        blob = {"mediaType": "layer", "digest": f"sha256:{layer * 64}", "size": 1}
        value = {"schemaVersion": 2, "mediaType": media_type, "config": blob, "layers": [blob]}
        return self.document(media_type, value, extra)

    def index(
        self,
        *entries: dict[str, object],
        extra: Mapping[str, object] | None = None,
        media_type: str = OCI_INDEX,
    ) -> dict[str, object]:
        value = {"schemaVersion": 2, "mediaType": media_type, "manifests": list(entries)}
        return self.document(media_type, value, extra)

    def finish(self, *entries: dict[str, object]) -> OciLayout:
        value = {"schemaVersion": 2, "manifests": list(entries)}
        (self.directory / "index.json").write_text(json.dumps(value))
        return OciLayout(str(self.directory))


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "layout")


def tagged(name: str, key: str = TAG) -> dict[str, dict[str, str]]:
    return {"annotations": {key: name}}


def platform(architecture: str) -> dict[str, dict[str, str]]:
    return {"platform": {"os": "linux", "architecture": architecture}}


def layer(layout: OciLayout, tag: str | None = None, wanted: Platform = AMD64) -> str:
    """The digit of which the chosen image's one layer is named."""
    (found,) = layout.manifest(tag, wanted).layers
    return found.digest[-1]


def test_the_only_image_needs_no_tag(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", tagged("latest")))
    assert layer(layout) == layer(layout, "latest") == "1"


def test_one_image_under_several_tags_needs_none_either(writer: Writer) -> None:
    layout = writer.finish(*(writer.manifest("1", tagged(tag)) for tag in ("one", "other")))
    assert layer(layout) == "1"


def test_of_several_images_one_must_be_named(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", tagged("one")), writer.manifest("2", tagged("two")))
    assert (layer(layout, "one"), layer(layout, "two")) == ("1", "2")
    with pytest.raises(SourceNotFound, match=r"several images: name one of one, two$"):
        layout.manifest(None, AMD64)
    with pytest.raises(SourceNotFound, match=r"no image 'three'; it has one, two$"):
        layout.manifest("three", AMD64)


def test_a_name_of_containerds_is_taken_too(writer: Writer) -> None:
    name = "docker.io/library/python:3"
    layout = writer.finish(
        writer.manifest("1", tagged(name, "io.containerd.image.name")), writer.manifest("2", tagged("x"))
    )
    assert layer(layout, name) == "1"


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_is_followed_to_the_platform(writer: Writer, media_type: str) -> None:
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
    assert (layer(layout), layer(layout, wanted=ARM64)) == ("1", "2")
    with pytest.raises(SourceNotFound, match="no image for linux/s390x"):
        layout.manifest(None, Platform("linux", "s390x"))


def test_indexes_may_be_nested_but_not_for_ever(writer: Writer) -> None:
    entry = writer.manifest("1", platform("amd64"))
    for _ in range(4):
        entry = writer.index(entry)
    assert layer(writer.finish(entry)) == "1"
    with pytest.raises(FormatError, match="indexes within each other"):
        writer.finish(writer.index(entry)).manifest(None, AMD64)


def test_a_layout_may_list_an_image_once_for_each_platform(writer: Writer) -> None:
    layout = writer.finish(writer.manifest("1", platform("amd64")), writer.manifest("2", platform("arm64")))
    assert (layer(layout), layer(layout, wanted=ARM64)) == ("1", "2")


def test_the_image_of_another_platform_is_not_taken(writer: Writer) -> None:
    with pytest.raises(SourceNotFound, match="no image for linux/amd64"):
        writer.finish(writer.manifest("1", platform("arm64"))).manifest(None, AMD64)


def test_what_is_no_image_is_left_out(writer: Writer) -> None:
    other = writer.document("application/vnd.example", {"schemaVersion": 2}, tagged("latest"))
    assert layer(writer.finish(other, writer.manifest("1"))) == "1"
    with pytest.raises(SourceNotFound, match=r"has no image$"):
        writer.finish(other).manifest(None, AMD64)


def test_a_manifest_with_another_digest_is_refused(writer: Writer) -> None:
    entry = writer.manifest("1")
    layout = writer.finish(entry)
    path = layout.blob_path(str(entry["digest"]))
    Path(path).write_bytes(Path(path).read_bytes().replace(b"layers", b"layerz"))
    with pytest.raises(VerificationError, match="another digest"):
        layout.manifest(None, AMD64)


def test_what_is_missing_is_named(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound, match=r"no OCI layout: it has no index.json"):
        OciLayout(str(tmp_path)).manifest(None, AMD64)
    entry = writer.manifest("1")
    layout = writer.finish(entry)
    os.unlink(layout.blob_path(str(entry["digest"])))
    with pytest.raises(SourceNotFound, match=f"lacks the manifest {entry['digest']}"):
        layout.manifest(None, AMD64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps({"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1, "mediaType": OCI_INDEX}]}),
    ],
)
def test_an_index_that_is_damaged_is_named(writer: Writer, text: str) -> None:
    layout = writer.finish()
    Path(layout.directory, "index.json").write_text(text)
    with pytest.raises(FormatError, match=r"index\.json: not an image index"):
        layout.manifest(None, AMD64)


def test_a_manifest_that_is_damaged_is_named(writer: Writer) -> None:
    layout = writer.finish(writer.document(OCI_MANIFEST, {"schemaVersion": 2, "layers": 1}))
    with pytest.raises(FormatError, match=r"blobs/sha256/[0-9a-f]{64}: not an image manifest"):
        layout.manifest(None, AMD64)


def test_a_blobs_path_stays_in_the_layout(writer: Writer) -> None:
    layout = writer.finish()
    assert layout.blob_path(f"sha256:{'a' * 64}") == f"{layout.directory}/blobs/sha256/{'a' * 64}"
    with pytest.raises(InvalidReference):
        layout.blob_path("sha256:../../../etc/passwd")


def test_directory_and_tag_may_both_have_colons(tmp_path: Path) -> None:
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
