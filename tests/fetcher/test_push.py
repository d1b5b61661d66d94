"""Pushing to a registry that fails in every way it can."""

from __future__ import annotations

import os
import random
from pathlib import Path

import httpx
import pytest

from fetcher.content import BytesContent, FileContent, Part
from fetcher.errors import (
    RegistryProtocolError,
    RegistryUnauthorized,
    RegistryUnavailable,
    RegistryUnreachable,
    StoreError,
)
from fetcher.manifest import Document
from fetcher.push import RepositoryPush
from fetcher.reference import parse_reference
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients, digest_of, reply
from tests.fetcher.test_auth import log_in
from tests.oci import MANIFEST
from tests.registry_faults import BasicLogin, BearerLogin, Interrupt, Status

pytestmark = pytest.mark.anyio

CHUNK = 10_000
DATA = random.Random(1).randbytes(3 * CHUNK + 17)
DIGEST = digest_of(DATA)
REPOSITORY = "team/app"


class Pushed:
    """What one upload of DATA came to."""

    def __init__(self, registry: FaultyRegistry, make_client: Clients) -> None:
        self.registry = registry
        self.make_client = make_client
        self.sent: list[int] = []

    async def upload(self, data: bytes = DATA, *, access: bool = False) -> None:
        async with self.make_client() as client:
            reference = parse_reference(f"{self.registry.host}/{REPOSITORY}")
            push = RepositoryPush(client, reference, chunk_size=CHUNK)
            if access:
                await push.require_access()
            await push.upload(digest_of(data), BytesContent(data), sent=self.sent.append)

    def requests(self) -> list[str]:
        """The methods of the requests about uploads, and the bytes that each carried."""
        return [
            f"{method} {headers.get('content-range') or headers.get('content-length', '0')}"
            for kind, method, _, headers in self.registry.log
            if kind == "upload"
        ]


@pytest.fixture
def pushed(registry: FaultyRegistry, make_client: Clients) -> Pushed:
    return Pushed(registry, make_client)


CHUNKS = [f"PATCH {start}-{min(len(DATA), start + CHUNK) - 1}" for start in range(0, len(DATA), CHUNK)]


async def test_a_blob_goes_in_chunks(pushed: Pushed) -> None:
    await pushed.upload()
    assert pushed.requests() == ["POST 0", *CHUNKS, "PUT 0"]
    assert pushed.registry.blob(DIGEST, REPOSITORY) == DATA
    assert pushed.sent == sorted(pushed.sent)
    assert pushed.sent[-1] == len(DATA)


@pytest.mark.parametrize("size", [0, 1, CHUNK])
async def test_a_small_blob_goes_in_one_request(pushed: Pushed, size: int) -> None:
    await pushed.upload(DATA[:size])
    assert pushed.requests() == ["POST 0", f"PUT {size}"]
    assert pushed.registry.blob(digest_of(DATA[:size]), REPOSITORY) == DATA[:size]


async def test_the_registry_may_want_larger_chunks(pushed: Pushed) -> None:
    pushed.registry.uploads.least_chunk = 2 * CHUNK
    await pushed.upload()
    assert pushed.requests() == ["POST 0", "PATCH 0-19999", f"PATCH 20000-{len(DATA) - 1}", "PUT 0"]


async def test_a_registry_without_chunks_gets_the_whole(pushed: Pushed) -> None:
    pushed.registry.uploads.chunks = False
    await pushed.upload()
    assert pushed.requests() == ["POST 0", CHUNKS[0], "POST 0", f"PUT {len(DATA)}"]
    assert pushed.registry.blob(DIGEST, REPOSITORY) == DATA


@pytest.mark.parametrize("kept", [-1, 4321])
async def test_a_reset_within_a_chunk_resumes_where_it_was(pushed: Pushed, kept: int) -> None:
    pushed.registry.fail("upload", Interrupt(6000, kept), times=1, path="state=10000")
    await pushed.upload()
    here = CHUNK + (6000 if kept < 0 else kept)
    resumed = [f"PATCH {here}-{here + CHUNK - 1}", f"PATCH {here + CHUNK}-{len(DATA) - 1}"]
    assert pushed.requests() == ["POST 0", *CHUNKS[:2], "GET 0", *resumed, "PUT 0"]
    assert pushed.registry.blob(DIGEST, REPOSITORY) == DATA
    assert pushed.sent[-1] == len(DATA)
    assert len(pushed.make_client.waits) == 1


async def test_an_upload_that_was_forgotten_is_begun_anew(pushed: Pushed) -> None:
    pushed.registry.fail("upload", Interrupt(6000, None), times=1, path="state=10000")
    await pushed.upload()
    assert pushed.requests() == ["POST 0", *CHUNKS[:2], "GET 0", "POST 0", *CHUNKS, "PUT 0"]
    assert pushed.registry.blob(DIGEST, REPOSITORY) == DATA


async def test_a_registry_that_forgets_every_time_is_given_up(pushed: Pushed) -> None:
    """Chunks that arrive again are no progress: or this would go on for ever."""
    pushed.registry.fail("upload", Interrupt(6000, None), path="state=10000")
    with pytest.raises(RegistryUnreachable):
        await pushed.upload()
    assert pushed.requests().count(CHUNKS[1]) > 1
    assert len(pushed.make_client.waits) == 3
    assert pushed.registry.blob(DIGEST) is None


async def test_an_unavailable_registry_is_tried_again(pushed: Pushed) -> None:
    for path in ("blobs/uploads/?", "blobs/uploads/", "state=20000"):
        pushed.registry.fail("upload", Status(500), times=1, path=path)
    pushed.registry.fail("upload", Status(503), times=1, path="digest=")
    await pushed.upload()
    assert pushed.registry.blob(DIGEST, REPOSITORY) == DATA
    assert len(pushed.make_client.waits) == 3


async def test_one_that_stays_unavailable_fails(pushed: Pushed) -> None:
    pushed.registry.fail("upload", Status(503), path="state=20000")
    with pytest.raises(RegistryUnavailable):
        await pushed.upload()
    assert len(pushed.make_client.waits) == 3


async def test_a_blob_that_is_there_though_its_upload_failed_is_not_sent_again(pushed: Pushed) -> None:
    """The answer to the last request gets lost."""
    pushed.registry.fail("upload", Status(500), times=1, path="digest=")
    pushed.registry.add_blob(DATA)
    await pushed.upload()
    assert pushed.requests() == ["POST 0", *CHUNKS, "PUT 0"]


async def test_a_wrong_digest_is_refused(pushed: Pushed) -> None:
    async with pushed.make_client() as client:
        push = RepositoryPush(client, parse_reference(f"{pushed.registry.host}/{REPOSITORY}"))
        with pytest.raises(RegistryProtocolError, match="400"):
            await push.upload(digest_of(b"other"), BytesContent(DATA), sent=pushed.sent.append)


class TestAuthentication:
    async def test_a_token_is_asked_for_pull_and_push(
        self, pushed: Pushed, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        log_in(make_client, registry.host)
        registry.require(BearerLogin("user", "opensesame"))
        await pushed.upload(access=True)
        tokens = [path for kind, _, path, _ in registry.log if kind == "token"]
        assert len(tokens) == 1
        assert "scope=repository%3Ateam%2Fapp%3Apull%2Cpush" in tokens[0]
        assert registry.blob(DIGEST, REPOSITORY) == DATA

    async def test_a_token_for_pulling_is_not_used_to_push(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        log_in(make_client, registry.host)
        registry.require(BearerLogin("user", "opensesame"))
        there = registry.add_blob(b"there")
        reference = parse_reference(f"{registry.host}/{REPOSITORY}")
        async with make_client() as client:
            push = RepositoryPush(client, reference)
            for data in (b"1", b"2"):
                await client.blob_bytes(reference, there, limit=100)
                await push.upload(digest_of(data), BytesContent(data), sent=lambda _: None)
        assert registry.requests["token"] == 2

    async def test_a_token_that_expires_within_an_upload_is_renewed(
        self, pushed: Pushed, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        log_in(make_client, registry.host)
        registry.require(BearerLogin("user", "opensesame"))
        sent = pushed.sent

        async with make_client() as client:
            push = RepositoryPush(client, parse_reference(f"{registry.host}/{REPOSITORY}"), chunk_size=CHUNK)

            def expire(count: int) -> None:
                sent.append(count)
                if count == 2 * CHUNK and registry.requests["token"] == 1:
                    registry.expire_tokens()

            await push.upload(DIGEST, BytesContent(DATA), sent=expire)
        assert registry.requests["token"] == 2
        assert registry.blob(DIGEST, REPOSITORY) == DATA

    async def test_without_rights_it_fails_before_anything_is_sent(
        self, pushed: Pushed, registry: FaultyRegistry
    ) -> None:
        registry.require(BasicLogin("user", "opensesame"))
        with pytest.raises(RegistryUnauthorized, match="there are no credentials for it"):
            await pushed.upload(access=True)
        assert pushed.requests() == ["POST 0"]

    async def test_credentials_do_not_follow_a_location_to_another_host(
        self, pushed: Pushed, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        log_in(make_client, registry.host)
        registry.require(BasicLogin("user", "opensesame"))
        registry.uploads.host = registry.storage_host
        await pushed.upload()
        seen = {
            (headers["host"], "authorization" in headers)
            for kind, method, _, headers in registry.log
            if kind == "upload" and method in ("PATCH", "PUT")
        }
        assert seen == {(registry.storage_host, False)}
        assert registry.blob(DIGEST, REPOSITORY) == DATA

    async def test_a_location_without_tls_is_refused(self, make_client: Clients) -> None:
        seen: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(str(request.url))
            return reply(202, location="http://good.io/v2/app/blobs/uploads/1")

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            push = RepositoryPush(client, parse_reference("good.io/app"))
            with pytest.raises(RegistryProtocolError, match="without TLS"):
                await push.upload(DIGEST, BytesContent(DATA), sent=lambda _: None)
        assert seen == ["https://good.io/v2/app/blobs/uploads/"]


class TestMounts:
    async def mount(self, registry: FaultyRegistry, make_client: Clients, source: str) -> bool:
        async with make_client() as client:
            push = RepositoryPush(client, parse_reference(f"{registry.host}/{REPOSITORY}"))
            mounted = await push.mount_blob(DIGEST, source)
            if not mounted:
                await push.upload(DIGEST, BytesContent(DATA), sent=lambda _: None)
            return mounted

    async def test_a_blob_of_a_neighbour_is_mounted(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.add_blob(DATA, repository="team/base")
        assert await self.mount(registry, make_client, "team/base")
        assert registry.blob(DIGEST, REPOSITORY) == DATA
        assert registry.requests["upload"] == 1

    async def test_one_that_it_does_not_have_is_uploaded_from_there_on(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        assert not await self.mount(registry, make_client, "team/base")
        assert registry.blob(DIGEST, REPOSITORY) == DATA
        assert [method for _, method, *_ in registry.log] == ["POST", "PUT"]

    async def test_a_registry_that_does_not_let_us_is_no_failure(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.fail("upload", Status(403), times=1, path="mount=")
        registry.add_blob(DATA, repository="team/base")
        assert not await self.mount(registry, make_client, "team/base")
        assert registry.blob(DIGEST, REPOSITORY) == DATA


class TestManifests:
    DOCUMENT = Document(digest_of(b"{}"), MANIFEST, b"{}")

    async def put(self, registry: FaultyRegistry, make_client: Clients) -> None:
        async with make_client() as client:
            push = RepositoryPush(client, parse_reference(f"{registry.host}/{REPOSITORY}"))
            await push.put_manifest(self.DOCUMENT, "latest")

    @pytest.mark.parametrize("fault", [Status(500), Interrupt(0)])
    async def test_a_failure_is_tried_again(
        self, registry: FaultyRegistry, make_client: Clients, fault: Status | Interrupt
    ) -> None:
        registry.fail("manifest", fault, times=2)
        await self.put(registry, make_client)
        assert registry.manifest(REPOSITORY, "latest") == (MANIFEST, b"{}")
        assert len(make_client.waits) == 2

    async def test_one_that_is_refused_fails(self, registry: FaultyRegistry, make_client: Clients) -> None:
        registry.fail("manifest", Status(400))
        with pytest.raises(RegistryProtocolError):
            await self.put(registry, make_client)
        assert registry.manifest(REPOSITORY, "latest") is None

    async def test_one_that_is_stored_as_another_fails(self, make_client: Clients) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return reply(201, docker_content_digest=DIGEST)

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            push = RepositoryPush(client, parse_reference("good.io/app"))
            with pytest.raises(RegistryProtocolError, match="and not as"):
                await push.put_manifest(self.DOCUMENT, "latest")


async def test_uploads_that_were_not_needed_are_cancelled(
    registry: FaultyRegistry, make_client: Clients
) -> None:
    async with make_client() as client:
        push = RepositoryPush(client, parse_reference(f"{registry.host}/{REPOSITORY}"))
        await push.require_access()
        await push.mount_blob(DIGEST, "team/base")
        assert len(registry.uploads.open) == 2
        await push.cancel_uploads()
    assert registry.uploads.open == {}


async def test_a_file_that_became_shorter_is_no_blob(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA[:-1])
    fd = os.open(tmp_path / "blob", os.O_RDONLY)
    try:
        part = Part(FileContent(fd, len(DATA)), 0, len(DATA), lambda _: None)
        with pytest.raises(StoreError, match="shorter"):
            [block async for block in part.blocks()]
    finally:
        os.close(fd)
