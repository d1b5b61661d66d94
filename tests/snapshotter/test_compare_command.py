"""`layergate compare`: what is equal whatever it is packed in, and what differs."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fetcher.errors import FormatError, SourceNotFound, VerificationError
from fetcher.nodes import Kind
from fetcher.toc import parse_toc
from fetcher.tree import build_tree
from snapshotter.inspection.merging import Tree, merged_tree
from tests import archives, estargz, oci
from tests.estargz import (
    Entry,
    Layer,
    Toc,
    build,
    chardev,
    dir,
    fifo,
    file,
    hardlink,
    landmark,
    opaque,
    plain,
    symlink,
    whiteout,
)
from tests.snapshotter.looking import blob_path, json_of, layout, run
from tests.zstd_chunked import Variant, build_zstd

BIG = bytes(range(256)) * 1000
BOTTOM: Sequence[Entry] = [
    dir("etc/", mode=0o750, uid=3, gid=4),
    file("etc/passwd", b"root:x:0:0", mode=0o640, uid=1, xattrs={"user.note": b"\x00\xff"}),
    file("etc/hidden", b"hidden"),
    dir("usr/"),
    file("usr/big", BIG),
    file("usr/suid", b"#!", mode=0o4755),
    symlink("usr/link", "../etc/passwd"),
    hardlink("usr/shadow", "etc/passwd"),
    chardev("usr/null", 1, 3, mode=0o666),
    fifo("usr/fifo"),
    file("usr/" + "n" * 150, b"long"),
    file("usr/" + "ä" * 100, b"not ASCII"),
]
TOP: Sequence[Entry] = [
    dir("etc/"),
    whiteout("etc/hidden"),
    dir("usr/"),
    file("usr/new", b"new"),
    file("usr/empty"),
]


def both(entries: Sequence[Entry], *, chunked: bool = False) -> dict[str, Layer]:
    """The same layer in every form."""
    return {
        "gzip": plain(entries),
        "estargz": build(entries, chunk_size=100_000 if chunked else 4 << 20),
        "zstd:chunked": build_zstd(entries, Variant.STARGZ),
        "containers'": build_zstd(entries, Variant.CONTAINERS),
    }


@pytest.mark.parametrize("form", both([]))
@pytest.mark.parametrize("options", [[], ["--read-all"]])
def test_the_same_in_another_form_is_equal(tmp_path: Path, form: str, options: list[str]) -> None:
    ordinary = layout(tmp_path / "a", plain(BOTTOM), plain(TOP))
    other = layout(tmp_path / "b", both(BOTTOM, chunked=True)[form], both(TOP)[form])
    result = run("compare", *options, ordinary, other)
    assert result.exception is None, result.exception
    assert "the trees are equal" in result.stdout, result.stdout
    assert result.return_value == 0
    found = json_of("compare", "--json", *options, ordinary, other)
    assert (found["equal"], found["differences"]) == (True, [])
    assert [(pair["equal"], pair["differences"]) for pair in found["layers"]] == [(True, []), (True, [])]


def test_every_kind_of_archive_is_equal(tmp_path: Path) -> None:
    layers = [plain(BOTTOM), plain(TOP)]
    expected = layout(tmp_path / "a", *layers)
    for path in (
        archives.docker_save_1_10(tmp_path / "1", layers),
        archives.docker_save_25(tmp_path / "2", oci.image(layers)),
        archives.podman_save(tmp_path / "3", layers),
        archives.crane_save(tmp_path / "4", layers),
    ):
        assert json_of("compare", "--json", expected, str(path))["equal"], path


def test_lone_layers(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archives.zstd_layer_tar(plain(BOTTOM)))
    (tmp_path / "b").write_bytes(build(BOTTOM).blob)
    found = json_of("compare", "--json", str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["equal"]
    (pair,) = found["layers"]
    assert (pair["a"]["format"], pair["b"]["format"]) == ("tar+zstd", "estargz")
    assert pair["a"]["digest"] == oci.digest((tmp_path / "a").read_bytes())


CHANGES: list[tuple[Sequence[Entry], str, dict[str, tuple[object, object]]]] = [
    ([file("x", b"other")], "x", {"size": (3, 5), "content": (oci.digest(b"one"), oci.digest(b"other"))}),
    ([file("x", b"two")], "x", {"content": (oci.digest(b"one"), oci.digest(b"two"))}),
    ([file("x", b"one", mode=0o4755)], "x", {"mode": ("0644", "4755")}),
    ([file("x", b"one", uid=7)], "x", {"uid": (0, 7)}),
    ([file("x", b"one", gid=7)], "x", {"gid": (0, 7)}),
    ([file("x", b"one", mtime=1)], "x", {"mtime": (estargz.MTIME, 1)}),
    (
        [file("x", b"one", xattrs={"user.a": b"\xff"})],
        "x",
        {"xattrs": ({}, {"user.a": base64.b64encode(b"\xff").decode()})},
    ),
    ([dir("x/")], "x", {"kind": ("reg", "dir")}),
    ([], "x", {"kind": ("reg", None)}),
]


@pytest.mark.parametrize(("entries", "path", "changes"), CHANGES)
@pytest.mark.parametrize("make", [plain, build])
def test_what_differs_is_named(
    tmp_path: Path,
    make: Any,
    entries: Sequence[Entry],
    path: str,
    changes: dict[str, tuple[object, object]],
) -> None:
    a = layout(tmp_path / "a", make([file("x", b"one"), file("y")]))
    b = layout(tmp_path / "b", make([*entries, file("y")]))
    found = json_of("compare", "--json", a, b)
    (difference,) = found["differences"]
    assert difference["path"] == path
    assert {change["aspect"]: (change["a"], change["b"]) for change in difference["changes"]} == changes
    assert found["layers"][0]["differences"] == found["differences"]
    assert not found["equal"]
    result = run("compare", a, b)
    assert result.return_value == 1
    assert "the trees differ in 1 path:" in result.stdout
    assert f"\n  {path}: " in result.stdout


def test_links_and_devices(tmp_path: Path) -> None:
    a = [file("a", b"1"), hardlink("b", "a"), symlink("s", "a"), chardev("c", 1, 3)]
    b = [file("a", b"1"), file("b", b"1"), symlink("s", "b"), chardev("c", 1, 5)]
    found = json_of("compare", "--json", layout(tmp_path / "a", plain(a)), layout(tmp_path / "b", build(b)))
    assert {
        (one["path"], change["aspect"], str(change["a"]), str(change["b"]))
        for one in found["differences"]
        for change in one["changes"]
    } == {
        ("a", "links", "['a', 'b']", "[]"),
        ("b", "links", "['a', 'b']", "[]"),
        ("s", "target", "a", "b"),
        ("c", "device", "1:3", "1:5"),
    }


def test_layers_may_be_cut_otherwise(tmp_path: Path) -> None:
    a = layout(tmp_path / "a", plain([file("a", b"1")]), plain([file("b", b"2")]))
    b = layout(tmp_path / "b", plain([file("a", b"1"), file("b", b"2")]))
    found = json_of("compare", "--json", a, b)
    assert found["equal"], "a container sees the same"
    first, second = found["layers"]
    assert not first["equal"]
    assert [one["path"] for one in first["differences"]] == ["b"]
    assert (second["b"], second["equal"]) == (None, False)
    assert "only in A" in run("compare", a, b).stdout


def test_what_is_before_the_landmark(tmp_path: Path) -> None:
    first, second, rest = file("first", b"1" * 100), file("second", b"2" * 100), file("z", b"3")
    a = layout(tmp_path / "a", build([first, landmark(), second, rest]))
    b = layout(tmp_path / "b", build([second, first, landmark(), rest]))
    found = json_of("compare", "--json", a, b)
    (pair,) = found["layers"]
    assert found["equal"]
    assert (pair["a"]["landmark"], pair["a"]["prefetch_files"]) == ("prefetch", ["first"])
    assert pair["b"]["prefetch_files"] == ["second", "first"]
    assert 0 < pair["a"]["prefetch_bytes"] < pair["b"]["prefetch_bytes"]
    shown = run("compare", a, b).stdout
    assert "layer 1 prefetch:" in shown
    assert "  only in B: second\n" in shown


def test_it_fits_the_terminal(tmp_path: Path) -> None:
    a, b = layout(tmp_path / "a", plain(BOTTOM)), layout(tmp_path / "b", plain(TOP))
    assert all(len(line) <= 80 for line in run("compare", a, b).stdout.splitlines())


def test_identical_layers(tmp_path: Path) -> None:
    source = layout(tmp_path / "a", plain(BOTTOM), build(TOP))
    result = run("compare", source, source)
    assert result.return_value == 0
    assert result.stdout.count("  identical\n") == 2


def test_a_table_that_lies_is_found_by_reading_all(tmp_path: Path) -> None:
    def lie(toc: Toc) -> None:
        toc["entries"][0]["mode"] = 0o777

    a = layout(tmp_path / "a", plain([file("x", b"1")]))
    b = layout(tmp_path / "b", build([file("x", b"1")], toc_mutate=lie))
    assert run("compare", a, b).return_value == 1, "layergate would show it as the table has it"
    assert run("compare", "--read-all", a, b).return_value == 0, "an unpacker as the tar has it"


def test_a_table_that_the_image_does_not_promise_is_not_believed(tmp_path: Path) -> None:
    def lie(toc: Toc) -> None:
        toc["entries"][0]["mode"] = 0o777

    honest, lying = build([file("x", b"1")]), build([file("x", b"1")], toc_mutate=lie)
    image = oci.image([lying])
    manifest = image.manifest.replace(lying.toc_digest.encode(), honest.toc_digest.encode())
    archive = archives.docker_save_25(tmp_path / "b", oci.Image(manifest, image.config, image.layers))
    assert run("compare", layout(tmp_path / "a", honest), str(archive)).return_value == 0


def test_a_layer_with_other_bytes_than_its_digest(tmp_path: Path) -> None:
    layer = plain(BOTTOM)
    source = layout(tmp_path / "a", layer)
    blob_path(source, layer).write_bytes(plain(TOP).blob.ljust(len(layer.blob), b"\0"))
    error = run("compare", source, source).exception
    assert isinstance(error, VerificationError)
    assert "layer 1" in str(error)


@pytest.mark.parametrize("cut", [1, 9, 100])
def test_a_layer_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a").write_bytes(plain(BOTTOM).blob[:-cut])
    error = run("compare", str(tmp_path / "a"), str(tmp_path / "a")).exception
    assert isinstance(error, FormatError)


def test_a_missing_image(tmp_path: Path) -> None:
    source = layout(tmp_path / "a", plain(BOTTOM))
    assert isinstance(run("compare", source, str(tmp_path / "none")).exception, SourceNotFound)


def odd_tar() -> bytes:
    """A tar with what the builder has not: sub-second times, a name that is no UTF-8, a huge owner."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, mtime in (("./", 5), ("./x", 1.75), ("./old", -1.25), ("./raw\udcff", 0)):
            info = tarfile.TarInfo(name)
            info.mtime, info.uid = mtime, 1 << 31
            if name == "./":
                info.type, info.mode = tarfile.DIRTYPE, 0o700
            tar.addfile(info)
    return out.getvalue()


def test_odd_entries_of_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(gzip.compress(odd_tar()))
    (tmp_path / "b").write_bytes(plain([dir("./", mode=0o700)]).blob)
    found = json_of("compare", "--json", str(tmp_path / "a"), str(tmp_path / "b"))
    changes = {
        one["path"]: {change["aspect"]: change["a"] for change in one["changes"]}
        for one in found["differences"]
    }
    assert changes == {
        "": {"uid": 1 << 31, "mtime": 5},
        "old": {"kind": "reg"},
        "raw\udcff": {"kind": "reg"},
        "x": {"kind": "reg"},
    }
    assert r"raw\udcff: only in A (reg)" in run("compare", str(tmp_path / "a"), str(tmp_path / "b")).stdout


class TestMerging:
    """What a container sees of several layers."""

    def test_whiteouts_hide_a_file_and_a_directory_with_all_in_it(self) -> None:
        below = [dir("d/"), file("d/x", b"x"), file("f"), file("stays")]
        assert merged(below, [whiteout("d"), whiteout("f")]).keys() == {"", "stays"}

    def test_what_is_whited_out_may_come_again(self) -> None:
        assert merged([file("f", b"1")], [whiteout("f")], [file("f", b"22")])["f"].size == 2

    def test_an_opaque_directory_hides_what_is_below_alone(self) -> None:
        below = [dir("d/"), file("d/x"), dir("d/e/"), file("d/e/y"), file("z")]
        seen = merged(below, [dir("d/", mode=0o700), opaque("d"), file("d/new")])
        assert seen.keys() == {"", "d", "d/new", "z"}
        assert (seen["d"].mode, seen["d"].opaque) == (0o700, False)

    def test_kinds_replace_each_other(self) -> None:
        assert merged([dir("d/"), file("d/x")], [file("d")]).keys() == {"", "d"}
        seen = merged([file("d")], [dir("d/"), file("d/x")])
        assert (seen["d"].kind, seen["d/x"].kind) == (Kind.DIRECTORY, Kind.REGULAR)
        assert merged([dir("d/"), file("d/x")], [symlink("d", "e")])["d"].target == "e"

    def test_directories_without_an_entry_keep_what_they_were(self) -> None:
        below = [dir("./", mode=0o700), dir("d/", mode=0o711, uid=7)]
        seen = merged(below, [file("d/x"), file("new/x")])
        assert (seen[""].mode, seen["d"].mode, seen["d"].uid, seen["new"].mode) == (0o700, 0o711, 7, 0o755)

    def test_hard_links_that_are_cut(self) -> None:
        below = [file("a", b"1"), hardlink("b", "a"), hardlink("c", "a")]
        seen = merged(below, [file("b", b"2")])
        assert (seen["a"].links, seen["b"].links, seen["c"].links) == (("a", "c"), (), ("a", "c"))
        assert merged(below, [whiteout("a"), whiteout("b")])["c"].links == ()

    def test_a_whiteout_of_nothing(self) -> None:
        assert merged([file("a")], [whiteout("x/b")]).keys() == {"", "a", "x"}


def merged(*layers: Sequence[Entry]) -> Tree:
    trees = []
    for entries in layers:
        layer = build(entries)
        trees.append((build_tree(parse_toc(layer.toc_json), end=len(layer.blob)), dict[str, str]()))
    return merged_tree(trees)
