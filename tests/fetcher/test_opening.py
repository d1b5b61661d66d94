"""Opening a layer: one request as a rule, and nothing kept that was not verified."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import anyio
import pytest

from fetcher.blob import Blob
from fetcher.errors import FormatError, InvalidToc, NotEstargz, VerificationError
from fetcher.opening import open_layer
from fetcher.progress import Field
from fetcher.store import FileSource, LayerStore, RegistrySource, layer_key
from fetcher.toc import TOC_LIMIT, toc_digest
from tests.estargz import Entry, Layer, build, dir, file, footer_bytes, plain, symlink
from tests.fetcher.memory_blob import MemoryBlob

pytestmark = pytest.mark.anyio

SOURCE = RegistrySource("a.example/x:1")
SMALL = build([dir("etc/"), file("etc/passwd", b"root"), symlink("etc/p", "passwd")])


def many(count: int) -> list[Entry]:
    return [file(f"d{number % 50}/{os.urandom(20).hex()}", b"%d" % number) for number in range(count)]


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path))


async def opened(
    store: LayerStore,
    blob: Blob,
    layer: Layer,
    *,
    size: int | None = None,
    promised: str | None = None,
    source: FileSource | RegistrySource = SOURCE,
    image: str = "a.example/x:1",
) -> str:
    return await open_layer(
        store, blob, digest=layer.digest, size=size, promised_toc_digest=promised, source=source, image=image
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("knows_size", [False, True])
async def test_one_request_opens_a_small_layer(store: LayerStore, legacy: bool, knows_size: bool) -> None:
    layer = build([dir("etc/"), file("etc/passwd", b"root")], legacy_footer=legacy)
    blob = MemoryBlob(layer.blob)
    size = len(layer.blob) if knows_size else None
    key = await opened(store, blob, layer, size=size, promised=layer.toc_digest)
    assert blob.requests == [(0, len(layer.blob))]
    assert key == layer_key(layer.digest, layer.toc_digest)
    assert set(store.tree(key).nodes) == {"", "etc", "etc/passwd"}
    record = store.record(key)
    assert (record.digest, record.toc_digest, record.size) == (
        layer.digest,
        layer.toc_digest,
        len(layer.blob),
    )
    assert (record.sources, record.images) == ([SOURCE], ["a.example/x:1"])
    progress = store.progress(key)
    assert progress[Field.FETCHED_TOC] == len(layer.blob)
    assert progress[Field.BYTES_TOTAL] == record.toc_offset == store.tree(key).end


async def test_toc_within_the_guess_costs_one_request(store: LayerStore) -> None:
    layer = build([file("data", os.urandom(8 << 20)), *many(100)])
    blob = MemoryBlob(layer.blob)
    key = await opened(store, blob, layer, size=len(layer.blob), promised=layer.toc_digest)
    [(start, end)] = blob.requests
    assert end == len(layer.blob)
    assert len(layer.blob) // 100 * 2 == end - start
    assert store.progress(key)[Field.FETCHED_TOC] == end - start


async def test_toc_beyond_the_guess_costs_one_more(store: LayerStore) -> None:
    layer = build(many(2000))
    toc_offset = int(layer.blob[-51:][16:32], 16)
    blob = MemoryBlob(layer.blob)
    key = await opened(store, blob, layer, promised=layer.toc_digest)
    tail = len(layer.blob) - (32 << 10)
    assert blob.requests == [(tail, len(layer.blob)), (toc_offset, tail)]
    assert store.progress(key)[Field.FETCHED_TOC] == len(layer.blob) - toc_offset == blob.sent
    assert sum(1 for _ in store.tree(key).regular_files()) == 2000


@pytest.mark.parametrize("cut", [0, 1, 2, 50, 51, 52])
async def test_toc_that_begins_about_where_the_guess_does(store: LayerStore, cut: int) -> None:
    """The tail is fetched from `cut` bytes before the TOC, or after it, with the TOC at every place there."""
    layer = SMALL
    toc_size = len(layer.blob) - int(layer.blob[-51:][16:32], 16)

    class Shorter(MemoryBlob):
        async def tail(self, length: int) -> tuple[bytes, int]:
            return await super().tail(toc_size + 2 - cut)

    blob = Shorter(layer.blob)
    key = await opened(store, blob, layer, promised=layer.toc_digest)
    assert set(store.tree(key).nodes) == {"", "etc", "etc/passwd", "etc/p"}
    assert len(blob.requests) == (1 if cut <= 2 else 2)


async def test_without_a_promise_the_toc_is_taken_as_it_is(store: LayerStore) -> None:
    key = await opened(store, MemoryBlob(SMALL.blob), SMALL)
    assert store.record(key).toc_digest == SMALL.toc_digest


async def test_opening_again_adds_the_source(store: LayerStore) -> None:
    local = FileSource("/mnt/blob")
    first = await opened(store, MemoryBlob(SMALL.blob), SMALL, promised=SMALL.toc_digest)
    second = await opened(
        store, MemoryBlob(SMALL.blob), SMALL, promised=SMALL.toc_digest, source=local, image="b.example/y:2"
    )
    assert first == second
    assert store.record(first).sources == [local, SOURCE]
    assert store.record(first).images == ["a.example/x:1", "b.example/y:2"]


async def refuses(
    store: LayerStore, layer: Layer, blob: bytes, promised: str | None, match: str
) -> type[Exception]:
    memory = MemoryBlob(blob)
    with pytest.raises(FormatError, match=match) as caught:
        await opened(store, memory, layer, promised=promised)
    assert store.layers() == []
    return caught.type


@pytest.mark.parametrize("promised", [None, "sha256:" + "0" * 64])
async def test_ordinary_layer(store: LayerStore, promised: str | None) -> None:
    layer = plain(many(10))
    assert await refuses(store, layer, layer.blob, promised, "no eStargz footer") is NotEstargz


@pytest.mark.parametrize("blob", [b"", b"\x1f", b"x" * 50, b"x" * 51, bytes(100_000)])
async def test_anything_else(store: LayerStore, blob: bytes) -> None:
    assert await refuses(store, SMALL, blob, None, "eStargz") is NotEstargz


async def test_another_toc_than_promised(store: LayerStore) -> None:
    other = build([file("etc/passwd", b"toor")])
    with pytest.raises(VerificationError, match="the image promises"):
        await opened(store, MemoryBlob(other.blob), SMALL, promised=SMALL.toc_digest)
    assert store.layers() == []


@pytest.mark.parametrize("back", [80, 120, 200])
async def test_damaged_toc(store: LayerStore, back: int) -> None:
    blob = MemoryBlob(SMALL.blob)
    blob.corrupt(len(SMALL.blob) - back)
    with pytest.raises((InvalidToc, VerificationError)):
        await opened(store, blob, SMALL, promised=SMALL.toc_digest)
    assert store.layers() == []


async def test_offset_that_points_elsewhere(store: LayerStore) -> None:
    blob = SMALL.blob[:-51] + footer_bytes(5)
    assert await refuses(store, SMALL, blob, SMALL.toc_digest, "not a gzip member|tar entry") is InvalidToc
    blob = SMALL.blob[:-51] + footer_bytes(0)
    assert await refuses(store, SMALL, blob, SMALL.toc_digest, "not 'stargz.index.json'") is InvalidToc
    blob = SMALL.blob[:-51] + footer_bytes(1 << 40)
    assert await refuses(store, SMALL, blob, SMALL.toc_digest, "outside the layer") is FormatError


async def test_offset_that_makes_half_a_terabyte_the_toc(store: LayerStore) -> None:
    """A blob of a size that nobody holds in memory: what is not read is not there."""

    class Huge(MemoryBlob):
        async def tail(self, length: int) -> tuple[bytes, int]:
            return (await super().tail(length))[0], 1 << 39

        async def read(self, start: int, end: int) -> bytes:
            assert end - start <= TOC_LIMIT, "read what it cannot hold"
            return await super().read(start, end)

    blob = Huge(bytes(1000) + footer_bytes(0))
    with pytest.raises(InvalidToc, match="even compressed"):
        await opened(store, blob, SMALL)


async def test_bomb_in_the_place_of_the_toc(store: LayerStore) -> None:
    bomb = gzip.compress(bytes(1 << 20))
    blob = SMALL.blob + bomb + footer_bytes(len(SMALL.blob))
    assert await refuses(store, SMALL, blob, None, "not a tar entry") is InvalidToc


async def test_empty_toc(store: LayerStore) -> None:
    layer = build([])
    key = await opened(store, MemoryBlob(layer.blob), layer, promised=layer.toc_digest)
    assert set(store.tree(key).nodes) == {""}
    assert store.tree(key).end == 0


async def test_digest_in_the_record_is_that_of_the_kept_toc(store: LayerStore) -> None:
    key = await opened(store, MemoryBlob(SMALL.blob), SMALL)
    kept = anyio.Path(store.directory(key), "toc.json")
    assert toc_digest(await kept.read_bytes()) == SMALL.toc_digest == store.record(key).toc_digest
