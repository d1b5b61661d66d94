"""The builder of hand-made layers, against the specification's arithmetic, tar, gzip and Debian's tools."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zlib

import pytest

from tests import estargz, oci, trees
from tests.estargz import (
    Layer,
    TocEntry,
    blockdev,
    build,
    chardev,
    dir,
    fifo,
    file,
    hardlink,
    landmark,
    no_landmark,
    opaque,
    plain,
    symlink,
    whiteout,
)
from tests.integration.harness import Containerd, Registry

ODDITIES = [
    dir("usr/", mode=0o751, uid=3, gid=4, mtime=1_000_000_000),
    file("usr/hello", b"hello, world\n", mode=0o4755),
    file("usr/empty", mode=0o2711, gid=7),
    file("usr/ünï cödé", b"x" * 10_000, uid=100_000, xattrs={"user.bin": b"\xff\x00\xfe", "user.text": b"t"}),
    hardlink("usr/again", "usr/hello"),
    symlink("usr/link", "../etc/passwd", uid=5, gid=6),
    chardev("usr/null", 1, 3, mode=0o666),
    blockdev("usr/disk", 7, 200, mode=0o660, gid=6),
    fifo("usr/pipe", mode=0o620),
    dir("tmp/", mode=0o1777, xattrs={"user.kind": b"directory"}),
    *(dir("tmp/" + "long-name/" * depth) for depth in range(1, 21)),
    file("tmp/" + "long-name/" * 20 + "end", b"deep"),
]


def member(blob: bytes, offset: int) -> bytes:
    """What the one gzip member at `offset` decompresses to."""
    return zlib.decompressobj(wbits=31).decompress(blob[offset:])


def toc_offset(layer: Layer, *, size: int = 51, at: int = 16) -> int:
    return int(layer.blob[-size:][at : at + 16], 16)


def entries(layer: Layer) -> list[TocEntry]:
    listed: list[TocEntry] = json.loads(layer.toc_json)["entries"]
    return listed


def test_footer_is_the_specifications_and_points_to_the_toc() -> None:
    layer = build(ODDITIES)
    footer = layer.blob[-51:]
    assert footer[:16] == bytes.fromhex("1f8b080400000000 00ff 1a00 5347 1600")
    assert footer[32:] == b"STARGZ\x01\x00\x00\xff\xff" + bytes(8)
    out = member(layer.blob, toc_offset(layer))
    assert out[512 : 512 + len(layer.toc_json)] == layer.toc_json
    assert layer.toc_digest == "sha256:" + hashlib.sha256(layer.toc_json).hexdigest()


def test_legacy_footer_has_47_bytes_and_no_subfield() -> None:
    layer = build(ODDITIES, legacy_footer=True)
    footer = layer.blob[-47:]
    assert footer[:12] == bytes.fromhex("1f8b080400000000 00ff 1600")
    assert footer[28:34] == b"STARGZ"
    assert layer.toc_json in member(layer.blob, toc_offset(layer, size=47, at=12))


def test_diff_id_and_size_are_those_of_the_decompressed_blob() -> None:
    for layer in (build(ODDITIES), build(ODDITIES, legacy_footer=True), plain(ODDITIES)):
        tar = gzip.decompress(layer.blob)
        assert layer.diff_id == "sha256:" + hashlib.sha256(tar).hexdigest()
        assert layer.uncompressed_size == len(tar)


@pytest.mark.parametrize("chunk_size", [1, 7, 4096, 4 << 20])
def test_each_chunk_begins_a_member_of_its_own(chunk_size: int) -> None:
    content = b"0123456789" * 3
    layer = build([file("a", content), file("b", b"b")], chunk_size=chunk_size)
    chunks = [entry for entry in entries(layer) if entry["name"] == "a"]
    assert [entry["type"] for entry in chunks] == ["reg"] + ["chunk"] * (len(chunks) - 1)
    assert len({entry["offset"] for entry in chunks}) == len(chunks) == -(-len(content) // chunk_size)
    whole = b""
    for entry in chunks:
        start = entry.get("chunkOffset", 0)
        size = entry.get("chunkSize") or len(content) - start
        piece = member(layer.blob, entry["offset"])[:size]
        assert "sha256:" + hashlib.sha256(piece).hexdigest() == entry["chunkDigest"]
        assert start == len(whole)
        whole += piece
    assert whole == content


def test_small_files_share_members_under_a_minimal_chunk_size() -> None:
    files = {f"file-{number}": bytes([number]) * 700 for number in range(40)}
    layer = build([file(name, content) for name, content in files.items()], min_chunk_size=5000)
    listed = entries(layer)
    assert 1 < len({entry["offset"] for entry in listed}) < len(listed)
    for entry in listed:
        inner = entry.get("innerOffset", 0)
        assert member(layer.blob, entry["offset"])[inner : inner + entry["size"]] == files[entry["name"]]


def test_prefetch_landmark_begins_a_member_also_where_files_share_them() -> None:
    layer = build([file("first", b"1"), landmark(), file("second", b"2")], min_chunk_size=1 << 20)
    first, mark, second = entries(layer)
    assert mark["name"] == ".prefetch.landmark"
    assert "innerOffset" not in mark
    assert first["offset"] < mark["offset"] <= second["offset"]
    assert member(layer.blob, mark["offset"])[:1] == b"\x0f"


def test_toc_describes_each_kind() -> None:
    listed = {entry["name"]: entry for entry in entries(build(ODDITIES))}
    assert listed["usr/"] == {
        "name": "usr/",
        "type": "dir",
        "mode": 0o751,
        "uid": 3,
        "gid": 4,
        "modtime": "2001-09-09T01:46:40Z",
    }
    assert "offset" not in listed["usr/empty"]
    assert "chunkDigest" not in listed["usr/empty"]
    assert listed["usr/hello"]["mode"] == 0o4755
    assert listed["usr/hello"]["digest"] == "sha256:" + hashlib.sha256(b"hello, world\n").hexdigest()
    assert listed["usr/again"]["type"] == "hardlink"
    assert listed["usr/again"]["linkName"] == "usr/hello"
    assert listed["usr/link"]["linkName"] == "../etc/passwd"
    assert (listed["usr/disk"]["devMajor"], listed["usr/disk"]["devMinor"]) == (7, 200)
    assert base64.b64decode(listed["usr/ünï cödé"]["xattrs"]["user.bin"]) == b"\xff\x00\xfe"


def test_options_change_what_they_say() -> None:
    def rename(toc: estargz.Toc) -> None:
        toc["entries"][0]["name"] = "changed"

    assert entries(build([file("a", b"1")], toc_mutate=rename))[0]["name"] == "changed"
    assert "chunkDigest" not in entries(build([file("a", b"1")], omit_chunk_digests=True))[0]
    prefixed = build([file("a", b"1"), hardlink("b", "a")], prefix="./")
    assert [entry["name"] for entry in entries(prefixed)] == ["./a", "./b"]
    assert entries(prefixed)[1]["linkName"] == "./a"
    assert entries(build([no_landmark()]))[0]["name"] == ".no.prefetch.landmark"


def test_whiteouts_are_named_as_oci_says() -> None:
    assert whiteout("usr/gone").name == "usr/.wh.gone"
    assert whiteout("gone").name == ".wh.gone"
    assert opaque("usr/").name == "usr/.wh..wh..opq"


def test_the_blob_is_an_ordinary_tar() -> None:
    with tarfile.open(fileobj=io.BytesIO(build(ODDITIES).blob), mode="r:gz") as tar:
        assert tar.getnames() == [entry.name.rstrip("/") for entry in ODDITIES] + ["stargz.index.json"]
        content = tar.extractfile("usr/ünï cödé")
        assert content is not None
        assert content.read() == b"x" * 10_000


def test_gnu_tar_lists_it() -> None:
    done = subprocess.run(["tar", "-tz"], input=build(ODDITIES).blob, capture_output=True, check=True)
    assert len(done.stdout.splitlines()) == len(ODDITIES) + 1


@pytest.mark.containerd
def test_debians_tools_read_the_toc_and_unpack_the_same_as_the_plain_layer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """containerd unpacks what was built, and ctr-remote finds the TOC digest that was computed."""
    base = tmp_path_factory.mktemp("b")
    layer = build([landmark(), *ODDITIES], chunk_size=4096)
    with Registry(f"{base}/registry") as registry, Containerd(f"{base}/containerd") as containerd:
        lazy = oci.push(registry.host, "lazy", oci.image([layer]))
        ordinary = oci.push(registry.host, "ordinary", oci.image([plain(ODDITIES)]))
        shared = oci.push(
            registry.host, "shared-members", oci.image([build(ODDITIES, min_chunk_size=50_000)])
        )
        found = {}
        for reference in (lazy, ordinary, shared):
            containerd.pull(reference)
            with containerd.mounted(reference, f"{base}/mounted") as root:
                found[reference] = trees.scan(root)
        digest = containerd.ctr("images", "get-toc-digest", layer.digest, program="ctr-remote")
    assert digest.strip() == layer.toc_digest
    hidden = [".prefetch.landmark", "stargz.index.json"]
    assert trees.difference(found[lazy], found[ordinary], without=[trees.ROOT, *hidden]) == []
    assert trees.difference(found[shared], found[ordinary], without=[trees.ROOT, *hidden]) == []
    hello = found[lazy]["usr/hello"]
    assert (hello.mode, hello.links) == (0o4755, frozenset({"usr/hello", "usr/again"}))
    assert found[lazy]["usr/ünï cödé"].xattrs == {"user.bin": b"\xff\x00\xfe", "user.text": b"t"}


@pytest.mark.containerd
def test_a_mixed_image_with_whiteouts_unpacks(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("b")
    lower = build(
        [dir("etc/"), file("etc/gone", b"1"), dir("opt/"), file("opt/hidden", b"2"), file("opt/kept", b"3")]
    )
    middle = plain([whiteout("etc/gone"), file("etc/new", b"4")])
    upper = build([dir("opt/"), opaque("opt/"), file("opt/kept", b"5")])
    with Registry(f"{base}/registry") as registry, Containerd(f"{base}/containerd") as containerd:
        reference = oci.push(registry.host, "mixed", oci.image([lower, middle, upper]), tag="1")
        containerd.pull(reference)
        with containerd.mounted(reference, f"{base}/mounted") as root:
            names = set(trees.scan(root))
    assert names - {"stargz.index.json"} == {trees.ROOT, "etc", "etc/new", "opt", "opt/kept"}
