"""`layergate toc`: numbers, trees, JSON, and what --verify finds."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fetcher.errors import FormatError, InvalidReference, InvalidToc, SourceNotFound
from snapshotter.manual.errors import NoSuchLayer
from tests import archives, estargz, oci
from tests.estargz import (
    Entry,
    Layer,
    Toc,
    build,
    chardev,
    dir,
    file,
    hardlink,
    landmark,
    no_landmark,
    opaque,
    symlink,
    whiteout,
)
from tests.faulty_registry import FaultyRegistry
from tests.snapshotter.looking import blob_path, json_of, layout, run
from tests.zstd_chunked import Variant, build_zstd

BIG = bytes(range(256)) * 1000
FIRST: Sequence[Entry] = [
    dir("usr/", mode=0o711, uid=3, gid=4),
    file("usr/first", b"first", mode=0o4755, uid=1000, gid=1000, xattrs={"user.note": b"\x00\xff"}),
    landmark(),
    file("usr/big", BIG),
    symlink("usr/link", "first"),
    hardlink("usr/other", "usr/first"),
    chardev("usr/null", 1, 3, mode=0o666),
    file("usr/empty"),
]
SECOND: Sequence[Entry] = [
    no_landmark(),
    dir("etc/"),
    whiteout("etc/gone"),
    opaque("etc"),
    file("etc/x", b"x"),
]


@pytest.fixture
def layers() -> list[Layer]:
    return [build(FIRST, chunk_size=100_000), build(SECOND), estargz.plain([file("plain", b"plain")])]


@pytest.fixture
def image(tmp_path: Path, layers: list[Layer]) -> str:
    return layout(tmp_path / "layout", *layers)


def test_a_table_of_an_image(image: str, layers: list[Layer]) -> None:
    result = run("toc", image)
    assert result.return_value == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[0].startswith(image)
    first, second, third = (line.split() for line in lines if line[:2] in ("1 ", "2 ", "3 "))
    size = f"{len(layers[0].blob) / 1000:.1f}"
    assert first[:4] == ["1", layers[0].digest[7:19], "estargz", size]
    assert first[5:9] == ["8", "256.0", "KB", "4"]
    assert " ".join(first[9:]).endswith("B, 1 file")
    assert second[-1] == "none"
    assert third[2] == "tar+gzip"
    assert lines[-1] == "layer 3 is an ordinary tar+gzip layer, without a table of contents"
    assert all(len(line) <= 80 for line in lines[2:])


def test_what_the_image_does_not_vouch_for_is_said(tmp_path: Path) -> None:
    result = run("toc", layout(tmp_path / "layout", build(SECOND), annotate=False))
    assert "layer 1 has a table of contents that the image does not vouch for" in result.stdout


def test_json(image: str, layers: list[Layer]) -> None:
    found = json_of("toc", "--json", image)
    assert found.keys() == {"source", "manifest", "layers"}
    first, second, third = found["layers"]
    assert first.keys() == {
        "number",
        "digest",
        "size",
        "format",
        "description",
        "media_type",
        "toc",
        "entries",
    }
    assert (first["number"], first["digest"], first["size"]) == (1, layers[0].digest, len(layers[0].blob))
    toc = first["toc"]
    prefetch = toc.pop("prefetch")
    assert toc == {
        "digest": layers[0].toc_digest,
        "promised": True,
        "offset": toc["offset"],
        "entries": 8,
        "files": 3,
        "files_bytes": 5 + len(BIG),
        "chunks": 4,
    }
    entries = {entry["path"]: entry for entry in first["entries"]}
    assert list(entries) == sorted(entries)
    chunks = entries["usr/big"]["chunks"]
    assert [(chunk["file_offset"], chunk["size"]) for chunk in chunks] == [
        (0, 100_000),
        (100_000, 100_000),
        (200_000, 56_000),
    ]
    assert chunks[0]["digest"] == oci.digest(BIG[:100_000])
    assert prefetch == {
        "landmark": "prefetch",
        "size": prefetch["size"],
        "files": 1,
        "files_bytes": 5,
    }
    assert entries["usr/first"]["chunks"][0]["end"] == prefetch["size"] < chunks[0]["offset"]
    assert {key: entries["usr/first"][key] for key in ("mode", "uid", "gid", "size", "mtime", "xattrs")} == {
        "mode": "4755",
        "uid": 1000,
        "gid": 1000,
        "size": 5,
        "mtime": estargz.MTIME,
        "xattrs": {"user.note": base64.b64encode(b"\x00\xff").decode()},
    }
    assert entries["usr/other"]["link"] == "usr/first"
    assert entries["usr/null"]["device"] == "1:3"
    assert entries["usr/link"]["target"] == "first"
    assert second["toc"]["prefetch"]["landmark"] == "no-prefetch"
    others = {entry["path"]: entry for entry in second["entries"]}
    assert others["etc"]["opaque"]
    assert others["etc/gone"]["type"] == "whiteout"
    assert (third["format"], third["toc"], third.get("entries")) == ("tar+gzip", None, None)


def test_a_tree(image: str) -> None:
    lines = run("toc", "--tree", image).stdout.splitlines()
    assert lines[0].startswith("layer 1 ")
    assert [line.split() for line in lines if "usr/first" in line] == [
        ["-rwsr-xr-x", "1000:1000", "5", "2020-09-13", "12:26", "usr/first", "[user.note]"],
        ["-rwsr-xr-x", "1000:1000", "5", "2020-09-13", "12:26", "usr/other", "=", "usr/first", "[user.note]"],
    ]
    for line in (
        "drwx--x--x       3:4          - 2020-09-13 12:26 usr",
        "lrwxrwxrwx       0:0          - 2020-09-13 12:26 usr/link -> first",
        "crw-rw-rw-       0:0       1, 3 2020-09-13 12:26 usr/null",
        "drwxr-xr-x       0:0          - 2020-09-13 12:26 etc (opaque)",
    ):
        assert line in lines
    assert any(line.endswith("etc/gone (whiteout)") for line in lines)
    assert lines[-1].endswith("an ordinary tar+gzip layer, without a table of contents")


def test_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    source = layout(tmp_path / "layout", build([file("a\x1b[2Jb"), symlink("l", "\x07")]))
    shown = run("toc", "--tree", source).stdout
    assert r"a\x1b[2Jb" in shown
    assert r"l -> \x07" in shown
    assert "\x1b" not in shown
    assert [entry["path"] for entry in json_of("toc", "--json", source)["layers"][0]["entries"]] == [
        "",
        "a\x1b[2Jb",
        "l",
    ]


def test_one_layer(image: str, layers: list[Layer]) -> None:
    for wanted in ("2", layers[1].digest, layers[1].digest[7:19]):
        (found,) = json_of("toc", "--json", "--layer", wanted, image)["layers"]
        assert (found["number"], found["digest"]) == (2, layers[1].digest)
    assert isinstance(run("toc", "--layer", "4", image).exception, NoSuchLayer)


def test_the_file_of_a_layer(tmp_path: Path, layers: list[Layer]) -> None:
    path = tmp_path / "layer.tar.gz"
    path.write_bytes(layers[0].blob)
    found = json_of("toc", "--json", str(path))
    assert found["manifest"] is None
    (layer,) = found["layers"]
    assert (layer["digest"], layer["size"]) == (None, len(layers[0].blob))
    assert (layer["toc"]["digest"], layer["toc"]["promised"]) == (layers[0].toc_digest, None)
    assert "1 (a file)  intact: 3 files, 4 chunks" in run("toc", "--verify", str(path)).stdout


@pytest.mark.parametrize("variant", Variant)
def test_zstd_chunked(tmp_path: Path, variant: Variant) -> None:
    source = layout(tmp_path / "layout", build_zstd(FIRST, variant))
    (layer,) = json_of("toc", "--json", source)["layers"]
    assert (layer["format"], layer["toc"]["promised"], layer["toc"]["files"]) == ("zstd:chunked", True, 3)
    assert run("toc", "--verify", source).return_value == 0


def test_an_archive_and_a_registry(tmp_path: Path, layers: list[Layer]) -> None:
    archive = archives.docker_save_25(tmp_path / "a.tar", oci.image(layers))
    with FaultyRegistry() as registry:
        reference = registry.add_image("some/image", oci.image(layers))
        tables = [json_of("toc", "--json", source)["layers"] for source in (str(archive), reference)]
    assert tables[0] == tables[1]
    assert tables[0][0]["toc"]["digest"] == layers[0].toc_digest


def test_an_image_without_tables(tmp_path: Path, layers: list[Layer]) -> None:
    source = str(archives.podman_save(tmp_path / "a.tar", layers))
    found = json_of("toc", "--json", source)
    assert [layer["format"] for layer in found["layers"]] == ["tar", "tar", "tar"]
    assert run("toc", "--verify", source).return_value == 0


class TestVerifying:
    """`--verify`."""

    def test_an_intact_image(self, image: str, layers: list[Layer]) -> None:
        result = run("toc", "--verify", image)
        assert result.return_value == 0
        assert f"1 {layers[0].digest[7:19]}  intact: 3 files, 4 chunks, 256.0 KB" in result.stdout
        assert "its digest is right: an ordinary tar+gzip layer" in result.stdout
        found = json_of("toc", "--verify", "--json", image)
        assert [(layer.get("faults"), layer.get("entries")) for layer in found["layers"]] == [([], None)] * 3

    @pytest.mark.parametrize("min_chunk_size", [0, 150_000])
    def test_a_file_with_other_bytes_is_named(self, tmp_path: Path, min_chunk_size: int) -> None:
        def swap(toc: Toc) -> None:
            chunk = [entry for entry in toc["entries"] if entry["name"] == "usr/big"][1]
            chunk["chunkDigest"] = oci.digest(b"other")

        layer = build(FIRST, chunk_size=100_000, min_chunk_size=min_chunk_size, toc_mutate=swap)
        source = layout(tmp_path / "layout", layer)
        result = run("toc", "--verify", source)
        assert result.return_value == 6
        assert "usr/big: the 100000 bytes at 100000 are not those of their digest" in result.stdout
        assert faults(source) == [
            ("usr/big", "the 100000 bytes at 100000 are not those of their digest"),
        ]

    def test_the_digest_of_a_whole_file_counts(self, tmp_path: Path) -> None:
        def swap(toc: Toc) -> None:
            for entry in toc["entries"]:
                if entry["name"] in ("usr/big", "usr/first") and entry["type"] == "reg":
                    entry["digest"] = oci.digest(b"other")

        source = layout(tmp_path / "layout", build(FIRST, chunk_size=100_000, toc_mutate=swap))
        assert faults(source) == [
            ("usr/big", "the file is not that of its digest"),
            ("usr/first", "the file is not that of its digest"),
        ]

    @pytest.mark.parametrize("make", [build, lambda entries: build_zstd(entries, Variant.STARGZ)])
    def test_damage_on_the_way(self, tmp_path: Path, make: Callable[[Sequence[Entry]], Layer]) -> None:
        layer = make([file("a", b"1" * 50), file("b", bytes(range(256)) * 20), file("c", b"3" * 50)])
        source = layout(tmp_path / "layout", layer)
        before = {entry["path"]: entry for entry in json_of("toc", "--json", source)["layers"][0]["entries"]}
        (chunk,) = before["b"]["chunks"]
        path = blob_path(source, layer)
        data = bytearray(layer.blob)
        data[chunk["offset"] + 30] ^= 0xFF
        path.write_bytes(data)
        found = faults(source)
        assert found[0] == (None, f"the blob has the digest {oci.digest(bytes(data))}")
        assert {name for name, _ in found[1:]} == {"b"}
        assert run("toc", "--verify", source).return_value == 6
        assert run("toc", source).return_value == 0, "the table itself is as it should be"

    def test_another_table_than_promised(self, tmp_path: Path) -> None:
        layer = build(FIRST)
        image = oci.image([layer])
        other = oci.digest(b"other")
        manifest = image.manifest.replace(layer.toc_digest.encode(), other.encode())
        archive = archives.docker_save_25(tmp_path / "a.tar", oci.Image(manifest, image.config, image.layers))
        assert faults(str(archive)) == [
            (None, f"the image promises the TOC {other}, and this is {layer.toc_digest}")
        ]
        assert "layer 1 has another table of contents" in run("toc", str(archive)).stdout

    def test_a_layer_that_ends_too_soon(self, tmp_path: Path, layers: list[Layer]) -> None:
        source = layout(tmp_path / "layout", *layers)
        path = blob_path(source, layers[2])
        path.write_bytes(layers[2].blob[:-1])
        assert faults(source, layer="3") != []


def faults(source: str, *, layer: str = "1") -> list[tuple[str | None, str]]:
    (found,) = json_of("toc", "--verify", "--json", "--layer", layer, source)["layers"]
    return [(fault["path"], fault["reason"]) for fault in found["faults"]]


def test_errors(tmp_path: Path, layers: list[Layer]) -> None:
    def error(*arguments: str) -> BaseException | None:
        return run("toc", *arguments).exception

    assert isinstance(error(str(tmp_path / "none")), SourceNotFound)
    assert isinstance(error("Not an image"), InvalidReference)
    assert isinstance(error("--platform", "x", layout(tmp_path / "l", *layers)), InvalidReference)
    (tmp_path / "elf").write_bytes(b"\x7fELF")
    assert isinstance(error(str(tmp_path / "elf")), FormatError)
    bad = error(layout(tmp_path / "bad", layers[1], build([file("a", b"1")], toc_mutate=_version)))
    assert isinstance(bad, InvalidToc)
    assert str(bad).startswith("layer 2 (sha256:")
    assert run("toc", "--tree", "--json", str(tmp_path / "elf")).exit_code != 0


def _version(toc: Toc) -> None:
    toc["version"] = 7
