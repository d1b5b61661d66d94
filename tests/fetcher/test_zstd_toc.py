"""Opening zstd:chunked layers: what of the table of contents is verified against what, and kept."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FormatError, InvalidToc, NotEstargz, VerificationError
from fetcher.manifest import LayerDescriptor, promised_toc
from fetcher.opening import fetch_toc, open_layer
from fetcher.progress import Field
from fetcher.store import LayerStore, RegistrySource, layer_key
from fetcher.toc import TOC_LIMIT, parse_toc, toc_digest, toc_json, unpack_toc, verified_toc
from tests.estargz import Toc, dir, file, hardlink, symlink
from tests.fetcher.memory_blob import MemoryBlob
from tests.zstd_chunked import Variant, ZstdLayer, build_zstd, end_of_blob, skippable, zstd_footer

SOURCE = RegistrySource("a.example/x:1")
ENTRIES = [
    dir("etc/", mode=0o750),
    file("etc/passwd", b"root", xattrs={"user.x": b"\xff\0"}),
    hardlink("etc/p", "etc/passwd"),
    file("large", b"a" * 3000 + bytes(5000) + b"b" * 3000, uid=7),
    file("empty"),
    symlink("link", "etc"),
]


def promised(layer: ZstdLayer) -> str:
    """What a manifest promises of the layer."""
    digest = promised_toc(layer.annotations)
    assert digest is not None
    return digest


async def opened(store: LayerStore, layer: ZstdLayer, blob: MemoryBlob, promise: str | None) -> str:
    return await open_layer(
        store,
        blob,
        digest=layer.digest,
        size=len(blob.data),
        promised_toc_digest=promise,
        source=SOURCE,
        image="a.example/x:1",
    )


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path))


# What a manifest promises


@pytest.mark.parametrize("variant", Variant)
def test_digest_comes_from_the_annotations(variant: Variant) -> None:
    layer = build_zstd(ENTRIES, variant)
    assert promised(layer) == layer.toc_digest
    descriptor = LayerDescriptor(layer.digest, len(layer.blob), layer.media_type, layer.annotations)
    assert descriptor.toc_digest == layer.toc_digest


def test_digest_of_the_json_goes_first() -> None:
    layer = build_zstd(ENTRIES, Variant.STARGZ)
    assert layer.checksum in layer.annotations.values()
    assert promised(layer) == toc_digest(layer.toc_json) != layer.checksum


def test_invalid_promises_are_none() -> None:
    names = [
        "containerd.io/snapshot/stargz/toc.digest",
        "io.github.containers.zstd-chunked.manifest-checksum",
        "io.containers.zstd-chunked.manifest-checksum",
    ]
    good = toc_digest(b"")
    assert promised_toc({}) is None
    assert promised_toc(dict.fromkeys(names, "sha256:short")) is None
    for number in range(3):
        assert promised_toc({**dict.fromkeys(names, "junk"), names[number]: good}) == good


# Opening


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
async def test_layer_is_opened_by_one_request_and_again_from_disk(
    store: LayerStore, variant: Variant
) -> None:
    layer = build_zstd(ENTRIES, variant, chunk_size=2000)
    blob = MemoryBlob(layer.blob)
    key = await opened(store, layer, blob, promised(layer))
    assert blob.requests == [(0, len(layer.blob))]
    assert key == layer_key(layer.digest, layer.toc_digest)
    record = store.record(key)
    assert (record.toc_digest, record.size) == (layer.toc_digest, len(layer.blob))
    assert store.progress(key)[Field.BYTES_TOTAL] == record.toc_offset
    tree = LayerStore(store.root).tree(key)
    assert set(tree.nodes) == {"", "etc", "etc/passwd", "etc/p", "large", "empty", "link"}
    assert tree.nodes["etc/p"] is tree.nodes["etc/passwd"]
    assert tree.nodes["etc/passwd"].xattrs == {"user.x": b"\xff\0"}
    assert (tree.nodes["large"].uid, tree.nodes["large"].size) == (7, 11_000)
    assert tree.end == record.toc_offset
    assert tree.landmark is None


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
async def test_toc_on_disk_that_was_changed_is_refused(store: LayerStore, variant: Variant) -> None:
    layer = build_zstd(ENTRIES, variant)
    key = await opened(store, layer, MemoryBlob(layer.blob), promised(layer))
    kept = Path(store.directory(key), "toc.json")
    data = kept.read_bytes()
    if variant is not Variant.STARGZ:
        # The right content in another form is not what was promised, either.
        kept.write_bytes(toc_json(data))
        with pytest.raises(VerificationError):
            store.tree(key)
    kept.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    with pytest.raises(VerificationError):
        store.tree(key)
    store.replace_toc(key, data)
    assert "large" in store.tree(key).nodes


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
async def test_without_a_promise_the_json_is_kept(store: LayerStore, variant: Variant) -> None:
    layer = build_zstd(ENTRIES, variant)
    key = await opened(store, layer, MemoryBlob(layer.blob), None)
    assert store.record(key).toc_digest == toc_digest(layer.toc_json)
    assert "large" in store.tree(key).nodes


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
async def test_another_toc_than_promised(store: LayerStore, variant: Variant) -> None:
    layer, other = build_zstd(ENTRIES, variant), build_zstd([file("etc/passwd", b"toor")], variant)
    with pytest.raises(VerificationError, match="the image promises"):
        await opened(store, layer, MemoryBlob(other.blob), promised(layer))
    assert store.layers() == []


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
async def test_toc_beyond_the_guess_costs_one_more_request(store: LayerStore, variant: Variant) -> None:
    entries = [file(f"d{number % 50}/{os.urandom(20).hex()}", b"%d" % number) for number in range(2000)]
    layer = build_zstd(entries, variant)
    blob = MemoryBlob(layer.blob)
    key = await opened(store, layer, blob, promised(layer))
    toc_offset = int(layer.position.split(":")[0]) - 8
    tail = len(layer.blob) - (32 << 10)
    assert blob.requests == [(tail, len(layer.blob)), (toc_offset, tail)]
    assert store.progress(key)[Field.FETCHED_TOC] == blob.sent
    assert len(store.tree(key).nodes) == 2051


@pytest.mark.anyio
async def test_what_follows_the_toc_is_not_fetched_for_it(store: LayerStore) -> None:
    """tar-split's data of a large layer are larger than the guess."""
    layer = build_zstd(ENTRIES, Variant.CONTAINERS)
    packed = zstandard.ZstdCompressor().compress(layer.toc_json)
    offset = int(layer.position.split(":")[0])
    end = end_of_blob(packed, len(layer.toc_json), offset, Variant.CONTAINERS)
    data = layer.blob[: offset - 8] + skippable(packed) + skippable(os.urandom(100_000)) + end[-72:]
    blob = MemoryBlob(data)
    toc = await fetch_toc(blob, size=len(data), promised=toc_digest(packed))
    assert toc.json == layer.toc_json
    assert blob.requests == [(len(data) - (32 << 10), len(data)), (offset - 8, offset + len(packed))]


# Bad input


async def refuses(store: LayerStore, layer: ZstdLayer, data: bytes, match: str) -> type[Exception]:
    with pytest.raises(FormatError, match=match) as raised:
        await opened(store, layer, MemoryBlob(data), layer.toc_digest)
    assert store.layers() == []
    return raised.type


@pytest.mark.anyio
async def test_position_that_points_elsewhere(store: LayerStore) -> None:
    layer = build_zstd(ENTRIES)
    body = layer.blob[:-48]
    size = len(body) - int(layer.position.split(":")[0])
    for offset, length in ((len(body) - size - 1, size), (len(body) - size + 1, size - 1), (8, size)):
        data = body + zstd_footer(offset, length, 0)
        assert await refuses(store, layer, data, "does not hold|not a gzip member|tar entry") is InvalidToc
    data = body + zstd_footer(len(body) - size, size - 1, 0)
    assert await refuses(store, layer, data, "does not hold") is InvalidToc
    data = body + zstd_footer(1 << 40, 10, 0)
    assert await refuses(store, layer, data, "outside the layer") is FormatError
    assert await refuses(store, layer, body + bytes(48), "no eStargz footer") is NotEstargz


@pytest.mark.anyio
async def test_position_that_makes_half_a_terabyte_the_toc(store: LayerStore) -> None:
    class Huge(MemoryBlob):
        async def tail(self, length: int) -> tuple[bytes, int]:
            return (await super().tail(length))[0], 1 << 39

        async def read(self, start: int, end: int) -> bytes:
            assert end - start <= TOC_LIMIT, "read what it cannot hold"
            return await super().read(start, end)

    blob = Huge(bytes(1000) + zstd_footer(8, (1 << 39) - 1000, 0))
    with pytest.raises(InvalidToc, match="even compressed"):
        await opened(store, build_zstd(ENTRIES), blob, None)


@pytest.mark.anyio
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("back", [1, 20, 60])
async def test_damaged_toc(store: LayerStore, variant: Variant, back: int) -> None:
    layer = build_zstd(ENTRIES, variant)
    offset, size, _, _ = map(int, layer.position.split(":"))
    blob = MemoryBlob(layer.blob)
    blob.corrupt(offset + size - back)
    with pytest.raises((InvalidToc, VerificationError)):
        await opened(store, layer, blob, promised(layer))
    assert store.layers() == []


@pytest.mark.anyio
@pytest.mark.parametrize("size", [8, 47])
async def test_truncated_blob(store: LayerStore, size: int) -> None:
    layer = build_zstd(ENTRIES)
    assert await refuses(store, layer, layer.blob[:-size], "no eStargz footer") is NotEstargz


def test_bomb_in_the_place_of_the_toc() -> None:
    stream = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(16 << 20)
    packed = b"".join(stream.compress(zeros) for _ in range(2 + (TOC_LIMIT >> 24))) + stream.flush()
    assert len(packed) < 1 << 20
    with pytest.raises(InvalidToc, match="are allowed"):
        parse_toc(packed)
    with pytest.raises(InvalidToc, match="are allowed"):
        verified_toc(packed, toc_digest(b"something else"))


def test_empty_toc() -> None:
    for toc in (b"", zstandard.ZstdCompressor().compress(b"")):
        with pytest.raises(VerificationError, match="empty"):
            verified_toc(toc, toc_digest(b""))
        with pytest.raises(VerificationError, match="empty"):
            verified_toc(toc, None)


@pytest.mark.parametrize(
    "member", [skippable(b""), skippable(b"{}"), skippable(b"\x28\xb5\x2f\xfd")[:-1], b"\x50\x2a\x4d\x18"]
)
def test_frame_that_holds_no_toc(member: bytes) -> None:
    with pytest.raises(InvalidToc, match="does not hold"):
        unpack_toc(member)


@settings(deadline=None)
@given(junk=st.binary(max_size=200), position=st.integers(0, 200))
def test_arbitrary_frames_give_a_toc_or_invalid_toc(junk: bytes, position: int) -> None:
    packed = zstandard.ZstdCompressor().compress(json.dumps({"version": 1, "entries": []}).encode())
    for data in (junk, packed[:4] + junk, packed[:position] + junk + packed[position:]):
        with suppress(InvalidToc):
            parse_toc(unpack_toc(skippable(data)))
        with suppress(InvalidToc):
            parse_toc(data)


# containers/storage's own fields


@pytest.mark.anyio
async def test_times_to_the_nanosecond_and_in_other_zones(store: LayerStore) -> None:
    def change(toc: Toc) -> None:
        toc["entries"][0]["modtime"] = "2020-09-13T14:26:40.999999999+02:00"
        toc["entries"][1]["modtime"] = "1969-12-31T23:59:59.5Z"

    layer = build_zstd([file("a"), file("b"), file("c")], Variant.CONTAINERS, toc_mutate=change)
    tree = store.tree(await opened(store, layer, MemoryBlob(layer.blob), promised(layer)))
    assert [tree.nodes[path].mtime for path in "abc"] == [1_600_000_000, -1, 1_600_000_000]


@pytest.mark.anyio
async def test_file_without_any_digest_is_refused(store: LayerStore) -> None:
    def change(toc: Toc) -> None:
        del toc["entries"][0]["digest"]

    layer = build_zstd([file("a", b"a")], Variant.CONTAINERS, toc_mutate=change)
    key = await opened(store, layer, MemoryBlob(layer.blob), promised(layer))
    with pytest.raises(InvalidToc, match="without a sha256 digest"):
        store.tree(key)
