"""The formats that are written: footers, annotations, TOC fields; the same bytes from any number of jobs."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.convert import Compressors, LayerFormat, LayerOptions
from fetcher.tree import LANDMARK
from tests.fetcher.converting import (
    Converter,
    archived,
    formats,
    hardlink,
    lazy,
    member,
    symlink,
    tar_of,
    unpacked,
)
from tests.trees import difference

RANDOM = random.Random(11)
NOISE = RANDOM.randbytes(3 << 20)
PROGRAMS = {LayerFormat.ESTARGZ: "gzip", LayerFormat.ZSTD_CHUNKED: "zstd"}
SAMPLE = tar_of(
    member("usr/", mode=0o700, uid=1, gid=2, uname="one", gname="two"),
    member("usr/a", b"a" * 100, uid=1, gid=2, uname="one", gname="two"),
    member("usr/b", b"b", uid=1, gid=2, uname="uno", gname="two", mtime=0),
    member("large", NOISE[:250_000], xattrs={"user.x": b"\xff\0"}),
    member("empty"),
    symlink("link", "usr/a"),
    hardlink("hard", "usr/a"),
    member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
)


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    with Compressors(2) as compressors:
        yield Converter(tmp_path_factory.mktemp("convert"), compressors)


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("form", formats())
def test_what_is_said_of_a_layer_is_true(convert: Converter, form: LayerFormat) -> None:
    converted = convert(gzip.compress(SAMPLE), format=form)
    layer = converted.layer
    assert (layer.digest, layer.size) == (sha256(converted.blob), len(converted.blob))
    assert (layer.diff_id, layer.uncompressed_size) == (sha256(converted.tar), len(converted.tar))
    assert layer.toc_digest == sha256(converted.toc_json)
    assert layer.annotations["containerd.io/snapshot/stargz/toc.digest"] == layer.toc_digest
    assert layer.annotations["io.containers.estargz.uncompressed-size"] == str(len(converted.tar))
    assert layer.missing == ()


@pytest.mark.parametrize("form", formats())
def test_it_is_an_ordinary_layer_to_others(convert: Converter, form: LayerFormat) -> None:
    converted = convert(SAMPLE, format=form, prioritized=("large",))
    plain = subprocess.run(
        [PROGRAMS[form], "-dc"], input=converted.blob, stdout=subprocess.PIPE, check=True
    ).stdout
    assert plain == converted.tar
    listing = subprocess.run(
        ["tar", "-t", "--warning=no-unknown-keyword"], input=plain, capture_output=True, check=True
    )
    assert listing.stderr == b""
    assert plain.endswith(bytes(1024))


def test_the_footer_of_zstd_chunked(convert: Converter) -> None:
    converted = convert(SAMPLE, format=LayerFormat.ZSTD_CHUNKED)
    blob, annotations = converted.blob, converted.layer.annotations
    magic, size, offset, compressed, plain, kind, name = struct.unpack("<4sIQQQQ8s", blob[-48:])
    assert (magic, size, kind, name) == (b"\x50\x2a\x4d\x18", 40, 1, b"GnUlInUx")
    position = annotations["io.containers.zstd-chunked.manifest-position"]
    assert position == f"{offset}:{compressed}:{plain}:1"
    toc = blob[offset : offset + compressed]
    assert annotations["io.containers.zstd-chunked.manifest-checksum"] == sha256(toc)
    assert blob[offset - 8 : offset] == b"\x50\x2a\x4d\x18" + struct.pack("<I", compressed)
    assert offset + compressed == len(blob) - 48
    assert plain == len(converted.toc_json)


def test_the_fields_of_the_table_of_contents(convert: Converter) -> None:
    converted = convert(SAMPLE, chunk_size=100_000)
    document = json.loads(converted.toc_json)
    assert document["version"] == 1
    found = {(entry["name"], entry.get("chunkOffset", 0)): entry for entry in document["entries"]}
    time = "2020-09-13T12:26:40Z"
    assert found["usr/", 0] == {
        "name": "usr/",
        "type": "dir",
        "modtime": time,
        "mode": 0o700,
        "uid": 1,
        "gid": 2,
        "userName": "one",
        "groupName": "two",
    }
    a = found["usr/a", 0]
    # Names are said on change only, and the place depends on the compressor.
    assert a.pop("offset") > 0
    assert a == {
        "name": "usr/a",
        "type": "reg",
        "size": 100,
        "modtime": time,
        "mode": 0o644,
        "uid": 1,
        "gid": 2,
        "digest": sha256(b"a" * 100),
        "chunkDigest": sha256(b"a" * 100),
    }
    b = found["usr/b", 0]
    assert (b["userName"], "groupName" in b, "modtime" in b) == ("uno", False, False)
    first, last = found["large", 0], found["large", 200_000]
    assert (first["type"], first["size"], first["chunkSize"]) == ("reg", 250_000, 100_000)
    assert first["digest"] == sha256(NOISE[:250_000])
    assert first["chunkDigest"] == sha256(NOISE[:100_000])
    assert first["xattrs"] == {"user.x": "/wA="}
    assert (last["type"], last["chunkSize"]) == ("chunk", 50_000)
    assert last["chunkDigest"] == sha256(NOISE[200_000:250_000])
    assert found["empty", 0]["digest"] == sha256(b"")
    assert not {"offset", "size", "chunkDigest"} & found["empty", 0].keys()
    assert (found["link", 0]["type"], found["link", 0]["linkName"]) == ("symlink", "usr/a")
    assert (found["hard", 0]["type"], found["hard", 0]["linkName"]) == ("hardlink", "usr/a")
    null = found["null", 0]
    assert (null["type"], null["devMajor"], null["devMinor"]) == ("char", 1, 3)


def test_times_are_whole_seconds_rounded_down(convert: Converter) -> None:
    times = {"a": 0.9, "b": -0.1, "c": -1.5, "d": 1.999, "e": 10.0**13, "f": -(10.0**12)}
    converted = convert(tar_of(*(member(name, mtime=time) for name, time in times.items())))
    found = {entry.name: entry.modtime for entry in converted.toc.entries}
    assert found["a"] == ""
    assert found["b"] == "1969-12-31T23:59:59Z"
    assert found["c"] == "1969-12-31T23:59:58Z"
    assert found["d"] == "1970-01-01T00:00:01Z"
    assert (found["e"], found["f"]) == ("9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z")


def test_names_that_are_no_utf_8_are_kept_where_json_can(convert: Converter) -> None:
    name = b"caf\xe9/\xff".decode("utf-8", "surrogateescape")
    tar = tar_of(member(name, b"x", mode=0o600), symlink("link", name), format=tarfile.GNU_FORMAT)
    converted = convert(tar)
    assert difference(unpacked(converted.tar), unpacked(tar)) == []
    document = json.loads(converted.toc_json)
    assert [entry["name"] for entry in document["entries"]] == [".no.prefetch.landmark", name, "link"]
    assert document["entries"][2]["linkName"] == name
    assert document["entries"][1]["chunkDigest"] == sha256(b"x")


def test_it_begins_members_at_files_and_at_the_landmark(convert: Converter) -> None:
    tar = tar_of(*(member(str(number), NOISE[:1000]) for number in range(20)))
    shared = convert(tar, min_chunk_size=4000, prioritized=("19", "18"))
    offsets = [entry.offset for entry in shared.toc.entries]
    assert len(set(offsets)) < 10
    by_name = {entry.name: entry for entry in shared.toc.entries}
    assert by_name[LANDMARK].inner_offset == 0
    assert by_name[LANDMARK].offset > by_name["18"].offset
    # Each is the beginning of a gzip member.
    assert {offset for offset in offsets if shared.blob[offset : offset + 3] == b"\x1f\x8b\x08"} == {*offsets}


def test_headers_without_end_are_divided(convert: Converter) -> None:
    """Entries without content make no member larger than some megabytes."""
    links = [symlink(f"{number:0100}", "t" * 90) for number in range(12_000)]
    tar = tar_of(member("first", b"1"), *links, member("last", b"2"))
    converted = convert(tar)
    ends = _member_sizes(converted.blob)
    assert sum(ends) == len(converted.tar)
    assert max(ends[:-1]) <= (4 << 20) + 2048
    assert difference(lazy(converted), unpacked(tar)) == []


def _member_sizes(blob: bytes) -> list[int]:
    """The uncompressed size of each gzip member."""
    sizes = []
    while blob:
        inflater = zlib.decompressobj(31)
        sizes.append(len(inflater.decompress(blob)))
        assert inflater.eof
        blob = inflater.unused_data
    return sizes


@pytest.mark.parametrize("form", formats())
def test_the_same_bytes_with_any_number_of_jobs(
    tmp_path: Path, convert: Converter, form: LayerFormat
) -> None:
    files = [member(f"d/{number}", NOISE[number : number * 37 % 9000]) for number in range(600)]
    tar = tar_of(*files, member("large", NOISE), member("text", b"some text\n" * 90_000))
    results = set()
    for jobs in (1, 2, 3):
        directory = tmp_path / str(jobs)
        directory.mkdir()
        with Compressors(jobs) as compressors:
            one = Converter(directory, compressors)
            for source in (tar, gzip.compress(tar)):
                converted = one(source, format=form, chunk_size=1 << 18, prioritized=("text",))
                results.add(converted.blob)
    assert len(results) == 1


@pytest.mark.parametrize("form", formats())
def test_levels(convert: Converter, form: LayerFormat) -> None:
    tar = tar_of(member("text", Path(tarfile.__file__).read_bytes()))
    sizes = {level: convert(tar, format=form, level=level).layer.size for level in (1, 9)}
    assert sizes[9] < sizes[1]
    default = LayerOptions(format=form).level
    assert convert(tar, format=form).blob == convert(tar, format=form, level=default).blob


def test_the_levels_of_others() -> None:
    assert LayerOptions(format=LayerFormat.ESTARGZ).level == 9
    assert LayerOptions(format=LayerFormat.ZSTD_CHUNKED).level == 3


@pytest.mark.parametrize(
    "options",
    [
        {"level": 13},
        {"level": -1},
        {"level": 23, "format": LayerFormat.ZSTD_CHUNKED},
        {"chunk_size": 0},
        {"chunk_size": (64 << 20) + 1},
        {"min_chunk_size": -1},
        {"min_chunk_size": (64 << 20) + 1},
    ],
)
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"levels|bytes"):
        LayerOptions(**options)  # type: ignore[arg-type] # that is what is tested


@pytest.mark.parametrize("form", formats())
@pytest.mark.parametrize("tar", [bytes(1024), bytes(10240), bytes(512)])
def test_an_empty_layer(convert: Converter, tar: bytes, form: LayerFormat) -> None:
    converted = convert(tar, format=form)
    assert list(lazy(converted)) == ["."]
    assert archived(converted.tar)[0].name == ".no.prefetch.landmark"


def test_progress_sums_up_to_the_size_of_the_source(convert: Converter) -> None:
    source = gzip.compress(tar_of(member("a", NOISE), member("b", NOISE)))
    convert.progress.clear()
    convert(source)
    assert sum(convert.progress) == len(source)
    assert len(convert.progress) >= 2
    assert min(convert.progress) > 0


@pytest.mark.parametrize("form", formats())
def test_a_layer_converted_again_is_the_same(convert: Converter, form: LayerFormat) -> None:
    once = convert(SAMPLE, format=form)
    for again in formats():
        other = convert(once.blob, format=again)
        assert convert(other.blob, format=form).blob == once.blob
