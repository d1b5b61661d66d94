from __future__ import annotations

import errno
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fetcher.blob import SKIP_LIMIT, FileBlob, RegistryBlob
from fetcher.errors import (
    FormatError,
    RegistryNotFound,
    RegistryProtocolError,
    RegistryUnavailable,
    RegistryUnreachable,
    StoreError,
)
from fetcher.reference import parse_reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients
from tests.registry_faults import (
    Drop,
    Fault,
    IgnoreRange,
    RefuseSuffix,
    ShiftRange,
    ShortRange,
    Silence,
    Status,
    Throttle,
    Truncate,
    WrongBytes,
)

pytestmark = pytest.mark.anyio

DATA = random.Random(1).randbytes(3 << 20)
SIZE = len(DATA)


@asynccontextmanager
async def opened(
    registry: FaultyRegistry,
    make_client: Clients,
    *,
    size: int | None = None,
    data: bytes = DATA,
    settings: RegistrySettings | None = None,
) -> AsyncIterator[RegistryBlob]:
    async with make_client(settings) as client:
        yield blob_of(registry, client, size=size, data=data)


def blob_of(
    registry: FaultyRegistry, client: RegistryClient, *, size: int | None = None, data: bytes = DATA
) -> RegistryBlob:
    digest = registry.add_blob(data)
    return RegistryBlob(client, parse_reference(f"{registry.host}/team/app"), digest, size)


async def fail_while_reading(blob: RegistryBlob) -> None:
    async with blob.stream(0, SIZE) as blocks:
        async for block in blocks:
            raise KeyError(len(block))


@pytest.mark.parametrize(("start", "end"), [(0, SIZE), (0, 1), (SIZE - 1, SIZE), (1000, 2_000_000), (5, 5)])
async def test_a_range_comes_exactly(
    registry: FaultyRegistry, make_client: Clients, start: int, end: int
) -> None:
    async with opened(registry, make_client) as blob:
        async with blob.stream(start, end) as blocks:
            assert b"".join([block async for block in blocks]) == DATA[start:end]
        assert await blob.read(start, end) == DATA[start:end]
    expected = 0 if start == end else 2
    assert make_client.requests["blob"] == registry.requests["blob"] == expected
    assert make_client.received["blob"] == registry.sent["blob"] == 2 * (end - start)


async def test_one_connection_serves_reads_one_after_the_other(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    async with opened(registry, make_client) as blob:
        for start in range(0, 1000, 100):
            async with blob.stream(start, start + 100) as blocks:
                # As a reader does that knows how much it wants: it never asks for the end.
                assert await anext(blocks) == DATA[start : start + 100]
    assert registry.requests["blob"] == 10
    assert registry.connections == 1


async def test_a_stream_may_be_left_early(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client) as blob:
        async with blob.stream(0, SIZE) as blocks:
            first = await anext(blocks)
        assert first == DATA[: len(first)]
        with pytest.raises(KeyError):
            await fail_while_reading(blob)
        assert await blob.read(7, 9) == DATA[7:9]


async def test_a_stream_may_be_cancelled(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client) as blob:
        with anyio.CancelScope() as scope:
            async with blob.stream(0, SIZE) as blocks:
                async for _ in blocks:
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
        gc.collect()  # trio complains of generators that were left behind
        assert scope.cancelled_caught
        assert await blob.read(7, 9) == DATA[7:9]


async def test_a_refusal_costs_no_connection(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.fail("blob", RefuseSuffix())
    async with opened(registry, make_client) as blob:
        assert await blob.tail(1000) == (DATA[-1000:], SIZE)
        registry.fail("blob", Status(503), times=1)
        assert await blob.read(7, 9) == DATA[7:9]
    assert registry.connections == 1


@pytest.mark.parametrize("fault", [Drop(100_000), Truncate(100_000)])
async def test_a_dropped_stream_goes_on_at_the_next_byte(
    registry: FaultyRegistry, make_client: Clients, fault: Fault
) -> None:
    # More drops than tries are allowed: each of them brought something.
    registry.fail("blob", fault, times=10)
    async with opened(registry, make_client) as blob:
        assert await blob.read(17, SIZE) == DATA[17:]
    assert registry.requests["blob"] == 11
    assert len(make_client.waits) == 10
    ranges = [headers["range"] for _, _, _, headers in registry.log]
    assert len(set(ranges)) == 11


@pytest.mark.parametrize("fault", [Drop(0), Truncate(0), Status(500), Status(502), Status(503)])
async def test_a_few_failures_in_a_row_are_got_over(
    registry: FaultyRegistry, make_client: Clients, fault: Fault
) -> None:
    registry.fail("blob", fault, times=3)
    async with opened(registry, make_client) as blob:
        assert await blob.read(0, SIZE) == DATA
    assert len(make_client.waits) == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Drop(0), RegistryUnreachable),
        (Truncate(0), RegistryUnreachable),
        (Status(503), RegistryUnavailable),
        (Status(429), RegistryUnavailable),
    ],
)
async def test_more_failures_in_a_row_are_too_many(
    registry: FaultyRegistry, make_client: Clients, fault: Fault, error: type[Exception]
) -> None:
    registry.fail("blob", fault)
    async with opened(registry, make_client) as blob:
        with pytest.raises(error):
            await blob.read(0, SIZE)
        with pytest.raises(error):
            await blob.tail(100)
    assert registry.requests["blob"] == 2 * 4


async def test_a_short_answer_is_gone_on_from(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.fail("blob", ShortRange(1_000_000))
    async with opened(registry, make_client) as blob:
        assert await blob.read(0, SIZE) == DATA
    assert registry.requests["blob"] == 4


async def test_a_slow_answer_is_waited_for(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.fail("blob", Throttle(1_000_000))
    async with opened(registry, make_client, settings=RegistrySettings(retry_limit=0)) as blob:
        assert await blob.read(0, 200_000) == DATA[:200_000]


async def test_silence_ends_after_the_read_timeout(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.fail("blob", Silence(), times=1)
    settings = RegistrySettings(retry_limit=1, read_timeout_seconds=0.2)
    async with opened(registry, make_client, settings=settings) as blob:
        assert await blob.read(0, 10) == DATA[:10]
        registry.heal()
        registry.fail("blob", Silence())
        with pytest.raises(RegistryUnreachable, match="silent"):
            await blob.read(0, 10)


@pytest.mark.parametrize("fault", [ShiftRange(1), ShiftRange(-1)])
async def test_another_range_than_asked_for_is_refused(
    registry: FaultyRegistry, make_client: Clients, fault: Fault
) -> None:
    registry.fail("blob", fault)
    async with opened(registry, make_client) as blob:
        with pytest.raises(RegistryProtocolError, match="asked for"):
            await blob.read(10, 20)
    assert registry.requests["blob"] == 1


async def test_another_size_than_promised_is_refused(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client, size=SIZE + 1) as blob:
        with pytest.raises(RegistryProtocolError, match=f"it has {SIZE} bytes"):
            await blob.read(10, 20)


async def test_bytes_that_are_not_there_are_no_transient_failure(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    async with opened(registry, make_client) as blob:
        with pytest.raises(RegistryProtocolError, match=str(SIZE)):
            await blob.read(SIZE, SIZE + 10)
        with pytest.raises(RegistryProtocolError, match=str(SIZE)):
            await blob.read(SIZE - 10, SIZE + 10)
    assert make_client.waits == []


async def test_wrong_bytes_are_for_the_reader_to_find(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.fail("blob", WrongBytes())
    async with opened(registry, make_client) as blob:
        assert await blob.read(0, 100) == bytes(255 - byte for byte in DATA[:100])


async def test_a_registry_without_ranges_serves_the_beginning(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    registry.fail("blob", IgnoreRange())
    async with opened(registry, make_client) as blob:
        assert await blob.read(0, 100) == DATA[:100]
        assert await blob.read(SKIP_LIMIT, SIZE) == DATA[SKIP_LIMIT:]
        with pytest.raises(RegistryProtocolError, match="ignores Range"):
            await blob.read(SKIP_LIMIT + 1, SIZE)
        with pytest.raises(RegistryProtocolError, match="no byte"):
            await blob.read(0, SIZE + 1)


@pytest.mark.parametrize("size", [None, SIZE])
async def test_the_tail_is_one_request(
    registry: FaultyRegistry, make_client: Clients, size: int | None
) -> None:
    async with opened(registry, make_client, size=size) as blob:
        assert await blob.tail(100_000) == (DATA[-100_000:], SIZE)
    assert registry.requests["blob"] == 1
    start = "" if size is None else str(SIZE - 100_000)
    assert registry.log[0][3]["range"].startswith(f"bytes={start}-")


async def test_the_tail_of_a_short_blob_is_the_whole(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client, data=b"short") as blob:
        assert await blob.tail(100) == (b"short", 5)


async def test_the_tail_of_an_empty_blob_is_empty(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client, data=b"") as blob:
        assert await blob.tail(100) == (b"", 0)


@pytest.mark.parametrize("code", [400, 416, 501])
async def test_where_suffixes_are_refused_the_size_is_asked_for(
    registry: FaultyRegistry, make_client: Clients, code: int
) -> None:
    registry.fail("blob", RefuseSuffix(code))
    async with opened(registry, make_client) as blob:
        assert await blob.tail(1000) == (DATA[-1000:], SIZE)
        assert await blob.tail(1000) == (DATA[-1000:], SIZE)
    assert [method for _, method, _, _ in registry.log] == ["GET", "HEAD", "GET", "GET"]


async def test_where_a_suffix_is_answered_with_the_whole_its_length_is_the_size(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    registry.fail("blob", IgnoreRange(), times=1)
    async with opened(registry, make_client) as blob:
        assert await blob.tail(1000) == (DATA[-1000:], SIZE)
    assert registry.requests["blob"] == 2


async def test_a_dropped_tail_goes_on_at_the_next_byte(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    registry.fail("blob", Drop(70_000), times=2)
    async with opened(registry, make_client) as blob:
        assert await blob.tail(200_000) == (DATA[-200_000:], SIZE)
    assert registry.log[0][3]["range"] == "bytes=-200000"
    assert registry.requests["blob"] == 3


@pytest.mark.parametrize("fault", [ShiftRange(-5), ShortRange(50)])
async def test_a_wrong_tail_is_refused(registry: FaultyRegistry, make_client: Clients, fault: Fault) -> None:
    registry.fail("blob", fault)
    async with opened(registry, make_client) as blob:
        with pytest.raises(RegistryProtocolError, match="last 100 bytes"):
            await blob.tail(100)


async def test_a_blob_that_is_not_there_is_not_found(registry: FaultyRegistry, make_client: Clients) -> None:
    async with opened(registry, make_client, data=b"gone") as blob:
        registry.remove_blob(registry.add_blob(b"gone"))
        with pytest.raises(RegistryNotFound) as caught:
            await blob.read(0, 4)
    assert caught.value.host == registry.host
    assert registry.host in str(caught.value)
    assert "team/app" in str(caught.value)
    assert make_client.waits == []


async def test_redirected_blobs_are_found_again_without_the_registry(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    registry.redirect_blobs()
    async with make_client() as client:
        blob = blob_of(registry, client)
        assert await blob.tail(10) == (DATA[-10:], SIZE)
        assert await blob.read(5, 50) == DATA[5:50]
        assert await blob_of(registry, client).read(6, 60) == DATA[6:60]
    assert registry.requests == {"blob": 1, "storage": 3}


async def test_an_expired_location_is_asked_for_anew(registry: FaultyRegistry, make_client: Clients) -> None:
    registry.redirect_blobs()
    registry.fail("storage", Drop(1_000_000), times=1)
    async with opened(registry, make_client) as blob:
        async with blob.stream(0, SIZE) as blocks:
            received = await anext(blocks)
            registry.expire_signatures()
            received += b"".join([block async for block in blocks])
        assert received == DATA
    assert registry.requests == {"blob": 2, "storage": 3}


async def test_a_location_that_fails_is_asked_for_anew(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    registry.redirect_blobs()
    async with opened(registry, make_client) as blob:
        assert await blob.read(0, 1) == DATA[:1]
        registry.fail("storage", Status(503), times=1)
        assert await blob.read(1, 2) == DATA[1:2]
        registry.fail("storage", Drop(0), times=1)
        assert await blob.read(2, 3) == DATA[2:3]
    assert registry.requests["blob"] == 2


async def test_a_file_is_read_like_a_blob(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    blob = FileBlob(str(path))
    async with blob.stream(3, SIZE) as blocks:
        assert b"".join([block async for block in blocks]) == DATA[3:]
    assert await blob.read(100, 200) == DATA[100:200]
    assert await blob.read(100, 100) == b""
    assert await blob.tail(64) == (DATA[-64:], SIZE)
    assert await blob.tail(SIZE * 2) == (DATA, SIZE)


async def test_a_file_that_ends_early_is_not_what_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"12345")
    with pytest.raises(FormatError, match="ends at byte 5"):
        await FileBlob(str(path)).read(3, 6)


async def test_a_file_that_cannot_be_read_is_the_disks_fault(tmp_path: Path) -> None:
    blob = FileBlob(str(tmp_path / "missing"))
    with pytest.raises(StoreError) as caught:
        await blob.read(0, 1)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(StoreError) as caught:
        await blob.tail(1)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(StoreError) as caught:
        await FileBlob(str(tmp_path)).read(0, 1)
    assert caught.value.errno == errno.EISDIR
