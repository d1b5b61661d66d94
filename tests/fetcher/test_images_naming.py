"""SRC and DST: what a word means, and what a file is."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from fetcher.errors import FetchError, FormatError, InvalidReference, SourceNotFound
from fetcher.images.naming import (
    ArchivePlace,
    ContainerdPlace,
    LayerPlace,
    LayoutPlace,
    Place,
    RegistryPlace,
    parse_destination,
    parse_place,
)
from fetcher.images.recognition import layer_format
from fetcher.reference import parse_reference
from tests import archives, estargz, oci
from tests.archives import crane_save, docker_save_1_10, docker_save_25, file_member, podman_save, write_tar
from tests.estargz import dir, fifo, file

TREE = [dir("usr/"), dir("usr/share/"), dir("usr/share/doc/"), file("usr/share/doc/x", b"x")]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", ["python:3", "registry.local:5000/a/b@sha256:" + "0" * 64, "oci", "a/oci:x"])
def test_a_name_is_an_image_in_a_registry(text: str) -> None:
    place = RegistryPlace(parse_reference(text))
    assert parse_place(text) == parse_destination(text) == place
    assert str(place) == str(parse_reference(text))


@pytest.mark.parametrize(
    "text", ["Python", "docker://python", "oci:", "docker-archive:", "containerd:", "oci::x"]
)
def test_what_cannot_be_meant(text: str) -> None:
    for parse in (parse_place, parse_destination):
        with pytest.raises(InvalidReference):
            parse(text)


def test_an_image_of_containerd() -> None:
    place = ContainerdPlace("python:3", parse_reference("python:3"))
    assert parse_place("containerd:python:3") == parse_destination("containerd:python:3") == place
    assert str(place) == "containerd:python:3"
    with pytest.raises(InvalidReference):
        parse_place("containerd:Not an image")


def test_a_layout_that_is_there() -> None:
    os.makedirs("with:colon/in")
    assert parse_place("oci:with:colon:tag") == LayoutPlace("with:colon", "tag")
    assert parse_place("oci:with:colon/in") == LayoutPlace("with:colon/in", None)
    assert parse_place("oci:with:colon:") == LayoutPlace("with:colon", None)
    assert str(LayoutPlace("d", "t")) == "oci:d:t"
    assert parse_destination("oci:with:colon:tag") == LayoutPlace("with:colon", "tag")
    with pytest.raises(SourceNotFound, match="there is no directory none"):
        parse_place("oci:none:tag")


def test_a_layout_or_an_archive_that_is_to_be_made() -> None:
    os.makedirs("with:colon")
    assert parse_destination("oci:new:a/b:tag") == LayoutPlace("new", "a/b:tag")
    assert parse_destination("oci:with:colon/new:tag") == LayoutPlace("with:colon/new", "tag")
    assert parse_destination("oci:new") == LayoutPlace("new", None)
    assert parse_destination("docker-archive:new.tar:a/b:1") == ArchivePlace("new.tar", "a/b:1")
    assert parse_destination("docker-archive:with:colon/new.tar") == ArchivePlace("with:colon/new.tar", None)


def test_an_archive_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a:b.tar").touch()
    assert parse_place("docker-archive:a:b.tar:name:1") == ArchivePlace("a:b.tar", "name:1")
    assert parse_place("docker-archive:a:b.tar") == ArchivePlace("a:b.tar", None)
    assert parse_destination("docker-archive:a:b.tar:n") == ArchivePlace("a:b.tar", "n")
    with pytest.raises(SourceNotFound, match=r"there is no file none\.tar"):
        parse_place("docker-archive:none.tar:name:1")


def test_a_bare_path_that_is_to_be_made_is_a_layer() -> None:
    for text in ("./new", "/x/new", "../new", "new.tar", "new.tar.gz", "new.tgz", "new.tar.zst", "new.esgz"):
        assert parse_destination(text) == LayerPlace(text)
    for text in ("new.tar:1", "a.b/new.tar.gz", "new.txt"):
        assert isinstance(parse_destination(text), RegistryPlace)


def test_nothing_is_there() -> None:
    for text in ("./none", "/none/at/all", "none.tar.gz"):
        with pytest.raises(SourceNotFound, match=f"there is no file {text}"):
            parse_place(text)
    os.makedirs("directory")
    with pytest.raises(SourceNotFound, match=r"^\./directory is a directory, and no layer$"):
        parse_place("./directory")
    Path("directory/index.json").touch()
    with pytest.raises(SourceNotFound, match=r"for an OCI layout, say oci:directory$"):
        parse_place("directory")
    os.mkfifo("fifo")
    with pytest.raises(SourceNotFound, match="fifo is no regular file"):
        parse_place("./fifo")


def image_archives(directory: Path) -> dict[str, Path]:
    layers = [estargz.build(TREE)]
    return {
        "docker 1.10": docker_save_1_10(directory / "a", layers),
        "docker 25": docker_save_25(directory / "b", oci.image(layers)),
        "podman": podman_save(directory / "c", layers),
        "crane": crane_save(directory / "d", layers),
    }


def test_archives_of_images_are_recognised(tmp_path: Path) -> None:
    for path in image_archives(tmp_path).values():
        assert parse_place(str(path)) == ArchivePlace(str(path), None)


def test_compressed_archives_of_images_are_refused(tmp_path: Path) -> None:
    for name, path in image_archives(tmp_path).items():
        for compressed in (gzip.compress(path.read_bytes()), zstandard.compress(path.read_bytes())):
            Path("z").write_bytes(compressed)
            with pytest.raises(
                FormatError, match=r"z is compressed, and cannot be read in parts: decompress it"
            ):
                pytest.fail(f"{name}: {parse_place('./z')}")


def layers() -> dict[str, tuple[str, bytes]]:
    """Layers by what they are: their format and their bytes."""
    ordinary = estargz.plain(TREE)
    tar = archives.layer_tar(ordinary)
    return {
        "gzip": ("tar+gzip", ordinary.blob),
        "plain": ("tar", tar),
        "zstd": ("tar+zstd", archives.zstd_layer_tar(ordinary)),
        "eStargz": ("tar+gzip", estargz.build(TREE).blob),
        "nothing in it": ("tar", archives.layer_tar(archives.EMPTY)),
        "nothing in it, gzip": ("tar+gzip", archives.EMPTY.blob),
        "manifest.json in it": (
            "tar",
            archives.layer_tar(estargz.plain([file("manifest.json", b"[]"), *TREE])),
        ),
        "a pipe beside manifest.json": (
            "tar",
            archives.layer_tar(estargz.plain([file("manifest.json", b"[]"), fifo("p")])),
        ),
    }


@pytest.mark.parametrize("name", layers())
def test_layers_are_recognised(name: str) -> None:
    kind, data = layers()[name]
    Path("layer").write_bytes(data)
    assert parse_place("./layer") == LayerPlace("./layer")
    assert layer_format(data) == kind


def test_a_tar_of_the_oldest_form_is_a_layer(tmp_path: Path) -> None:
    data = bytearray(archives.layer_tar(estargz.plain([file("a", b"1")])))
    data[257:265] = bytes(8)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    Path("v7").write_bytes(data)
    assert parse_place("./v7") == LayerPlace("./v7")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"\x7fELF" + bytes(600), "an ELF program"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (b'{"schemaVersion": 2}', "JSON, so a manifest"),
        (gzip.compress(b"no tar"), "gzip-compressed data, but no tar"),
        (b"\x1f\x8b broken", "gzip-compressed data, but no tar"),
        (b"BZh91AY", "bzip2-compressed data"),
    ],
)
def test_what_is_neither_is_named(data: bytes, found: str) -> None:
    Path("what").write_bytes(data)
    with pytest.raises(FormatError, match=rf"what is {found}.*: neither an archive of images nor a layer"):
        parse_place("./what")


def test_a_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t", [file_member("a", bytes(5000)), file_member("b", bytes(5000))])
    os.truncate(path, 3000)
    with pytest.raises(FormatError, match="broken tar"):
        parse_place(str(path))


def test_no_word_makes_it_fail_otherwise(tmp_path: Path) -> None:
    places: list[Place] = []
    for text in (
        "",
        ":",
        "oci:.",
        "docker-archive:.:x",
        "containerd:@",
        "/",
        ".",
        "a" * 5000,
        "\0",
        "oci:\0",
    ):
        for parse in (parse_place, parse_destination):
            try:
                places.append(parse(text))
            except FetchError:
                continue
    assert LayoutPlace(".", None) in places


def test_members_of_any_format_are_recognised(tmp_path: Path) -> None:
    info, data = file_member("manifest.json", b"[]")
    with tarfile.open(tmp_path / "t", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    assert parse_place(str(tmp_path / "t")) == ArchivePlace(str(tmp_path / "t"), None)
