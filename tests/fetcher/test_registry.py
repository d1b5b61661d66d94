from __future__ import annotations

import email.utils
import gzip
import json
import socket
import time

import httpx
import pytest

from fetcher.errors import (
    FormatError,
    InvalidReference,
    RegistryNotFound,
    RegistryProtocolError,
    RegistryUnavailable,
    RegistryUnreachable,
    VerificationError,
)
from fetcher.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Platform
from fetcher.reference import Reference, parse_reference
from fetcher.registry import MANIFEST_LIMIT
from fetcher.retries import LONGEST_BACKOFF, parse_retry_after
from fetcher.settings import RegistrySettings
from tests.estargz import Layer
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients, digest_of, reply
from tests.oci import Image, image, index
from tests.registry_faults import Drop, Silence, Status, Truncate, WrongBytes

pytestmark = pytest.mark.anyio

AMD64 = Platform("linux", "amd64")
LAYERS = [
    Layer(
        blob=gzip.compress(bytes([number])),
        diff_id=f"sha256:{number:064x}",
        uncompressed_size=1,
        toc_digest=f"sha256:{number:064x}",
    )
    for number in range(3)
]


@pytest.fixture
def app() -> Image:
    return image(LAYERS)


def reference_to(registry: FaultyRegistry, target: str = ":latest") -> Reference:
    return parse_reference(f"{registry.host}/team/app{target}")


class TestManifest:
    async def test_a_tag_is_resolved_through_the_index(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app, tag="unused")
        data = index(app)
        registry.add_manifest("team/app", data, tag="latest", media_type=OCI_INDEX)
        async with make_client() as client:
            resolved = await client.manifest(reference_to(registry), platform=AMD64)
        assert resolved.index is not None
        assert (resolved.index.data, resolved.index.media_type) == (data, OCI_INDEX)
        assert (resolved.manifest.data, resolved.manifest.media_type) == (app.manifest, OCI_MANIFEST)
        assert resolved.manifest.digest == app.digest
        assert resolved.target == resolved.index
        assert [layer.digest for layer in resolved.layers] == [layer.digest for layer in LAYERS]
        assert [layer.toc_digest for layer in resolved.layers] == [layer.toc_digest for layer in LAYERS]
        assert make_client.requests == {"manifest": 2}
        assert make_client.received == registry.sent

    async def test_a_tag_may_name_a_manifest_itself(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app)
        async with make_client() as client:
            resolved = await client.manifest(reference_to(registry), platform=Platform("linux", "s390x"))
            config = await client.blob_bytes(reference_to(registry), resolved.config.digest, limit=1 << 20)
        assert resolved.index is None
        assert resolved.target == resolved.manifest
        assert config == app.config

    async def test_a_digest_is_asked_for_and_checked(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app)
        pinned = reference_to(registry, f":gone@{app.digest}")
        async with make_client() as client:
            assert (await client.manifest(pinned, platform=AMD64)).manifest.digest == app.digest
            registry.fail("manifest", WrongBytes())
            with pytest.raises(VerificationError, match=app.digest):
                await client.manifest(pinned, platform=AMD64)

    async def test_a_manifest_in_an_index_is_checked(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app, tag="unused")
        registry.add_manifest("team/app", index(app), tag="latest", media_type=OCI_INDEX)
        registry.fail("manifest", WrongBytes(), path=app.digest)
        async with make_client() as client:
            with pytest.raises(VerificationError, match=app.digest):
                await client.manifest(reference_to(registry), platform=AMD64)

    async def test_a_tags_content_is_checked_against_the_registrys_word(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app)
        registry.fail("manifest", WrongBytes())
        async with make_client() as client:
            with pytest.raises(VerificationError):
                await client.manifest(reference_to(registry), platform=AMD64)

    async def test_a_platform_that_is_missing_is_not_found(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        registry.add_image("team/app", app, tag="unused")
        registry.add_manifest("team/app", index(app), tag="latest", media_type=OCI_INDEX)
        async with make_client() as client:
            with pytest.raises(RegistryNotFound, match=r"no image for linux/s390x; there is: linux/amd64"):
                await client.manifest(reference_to(registry), platform=Platform("linux", "s390x"))

    async def test_a_tag_that_is_missing_is_not_found(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        async with make_client() as client:
            with pytest.raises(RegistryNotFound) as caught:
                await client.manifest(reference_to(registry, ":v1"), platform=AMD64)
        assert caught.value.status == 404
        assert f"{registry.host}/team/app: v1" in str(caught.value)

    @pytest.mark.parametrize(
        ("data", "media_type"),
        [
            (b"no JSON", OCI_MANIFEST),
            (b'{"schemaVersion": 1}', "application/vnd.docker.distribution.manifest.v1+prettyjws"),
            (b'{"schemaVersion": 2, "layers": []}', DOCKER_MANIFEST),
        ],
    )
    async def test_what_is_no_manifest_is_a_format_error(
        self, registry: FaultyRegistry, make_client: Clients, data: bytes, media_type: str
    ) -> None:
        registry.add_manifest("team/app", data, tag="latest", media_type=media_type)
        async with make_client() as client:
            with pytest.raises(FormatError, match="team/app"):
                await client.manifest(reference_to(registry), platform=AMD64)

    async def test_an_index_within_an_index_is_a_format_error(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        inner = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
        registry.add_manifest("team/app", inner)
        entry = {"mediaType": OCI_MANIFEST, "digest": digest_of(inner), "size": len(inner)}
        outer = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
        registry.add_manifest("team/app", outer, tag="latest")
        async with make_client() as client:
            with pytest.raises(FormatError, match="lists an index"):
                await client.manifest(reference_to(registry), platform=AMD64)

    async def test_a_manifest_of_any_size_is_not_taken(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.add_manifest("team/app", bytes(MANIFEST_LIMIT + 1), tag="latest")
        async with make_client() as client:
            with pytest.raises(RegistryProtocolError, match=str(MANIFEST_LIMIT)):
                await client.manifest(reference_to(registry), platform=AMD64)


class TestBlobBytes:
    async def test_content_is_verified(self, registry: FaultyRegistry, make_client: Clients) -> None:
        digest = registry.add_blob(b"content")
        registry.fail("blob", WrongBytes(), times=1)
        async with make_client() as client:
            with pytest.raises(VerificationError, match=digest):
                await client.blob_bytes(reference_to(registry), digest, limit=100)
            assert await client.blob_bytes(reference_to(registry), digest, limit=7) == b"content"
            with pytest.raises(RegistryProtocolError, match="6 bytes"):
                await client.blob_bytes(reference_to(registry), digest, limit=6)
            with pytest.raises(InvalidReference):
                await client.blob_bytes(reference_to(registry), "sha256:..", limit=6)

    @pytest.mark.parametrize("fault", [Drop(3), Truncate(3), Status(500), Status(429)])
    async def test_failures_are_got_over(
        self, registry: FaultyRegistry, make_client: Clients, fault: Drop | Truncate | Status
    ) -> None:
        digest = registry.add_blob(b"content")
        registry.fail("blob", fault, times=3)
        async with make_client() as client:
            assert await client.blob_bytes(reference_to(registry), digest, limit=100) == b"content"
        assert len(make_client.waits) == 3


class TestRetries:
    async def test_waits_grow_and_are_drawn_at_random(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.fail("manifest", Status(503))
        async with make_client(RegistrySettings(retry_limit=12)) as client:
            with pytest.raises(RegistryUnavailable, match="is unavailable"):
                await client.manifest(reference_to(registry), platform=AMD64)
        limits = [min(LONGEST_BACKOFF, 0.25 * 2**number) for number in range(12)]
        assert all(wait <= limit for wait, limit in zip(make_client.waits, limits, strict=True))
        assert len(set(make_client.waits)) == 12
        assert max(make_client.waits) > 1.0

    async def test_a_retry_after_is_kept_to(self, registry: FaultyRegistry, make_client: Clients) -> None:
        digest = registry.add_blob(b"content")
        registry.fail("blob", Status(429, (("Retry-After", "7"),)), times=1)
        async with make_client() as client:
            assert await client.blob_bytes(reference_to(registry), digest, limit=100) == b"content"
        assert len(make_client.waits) == 1
        assert 7 <= make_client.waits[0] <= 7.25

    async def test_a_long_retry_after_is_given_up_on(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.fail("manifest", Status(429, (("Retry-After", "3600"),)))
        async with make_client() as client:
            with pytest.raises(RegistryUnavailable, match="asks for a wait of 3600 s") as caught:
                await client.manifest(reference_to(registry), platform=AMD64)
        assert caught.value.status == 429
        assert make_client.waits == []

    async def test_no_registry_at_all_is_unreachable(self, make_client: Clients) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            host = f"127.0.0.1:{server.getsockname()[1]}"
        async with make_client() as client:
            with pytest.raises(RegistryUnreachable, match="is it reachable") as caught:
                await client.manifest(parse_reference(f"{host}/app"), platform=AMD64)
        assert caught.value.host == host
        assert len(make_client.waits) == 3

    async def test_silence_is_unreachable(self, registry: FaultyRegistry, make_client: Clients) -> None:
        registry.fail("manifest", Silence())
        async with make_client(RegistrySettings(retry_limit=0, read_timeout_seconds=0.2)) as client:
            with pytest.raises(RegistryUnreachable, match="silent for too long"):
                await client.manifest(reference_to(registry), platform=AMD64)

    async def test_an_unexpected_status_is_not_tried_again(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.fail("manifest", Status(418))
        async with make_client() as client:
            with pytest.raises(RegistryProtocolError, match="418"):
                await client.manifest(reference_to(registry), platform=AMD64)
        assert registry.requests["manifest"] == 1

    def test_retry_after_is_seconds_or_a_date(self) -> None:
        assert parse_retry_after("17") == 17
        assert parse_retry_after(None) is None
        assert parse_retry_after("") is None
        assert parse_retry_after("soon") is None
        assert parse_retry_after("-5") is None
        assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
        later = parse_retry_after(email.utils.formatdate(time.time() + 10_000, usegmt=True))
        assert later is not None
        assert later > 5_000


class TestRequests:
    async def test_every_request_says_who_asks(
        self, registry: FaultyRegistry, make_client: Clients, app: Image
    ) -> None:
        reference = parse_reference(registry.add_image("team/app", app))
        async with make_client() as client:
            resolved = await client.manifest(reference, platform=AMD64)
            await client.blob_bytes(reference, resolved.config.digest, limit=1 << 20)
        for _, _, _, headers in registry.log:
            assert headers["user-agent"].startswith("layergate/")
            assert headers["accept-encoding"] == "identity"
        assert OCI_INDEX in registry.log[0][3]["accept"]

    async def test_an_encoded_answer_is_refused(self, make_client: Clients) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return reply(200, gzip.compress(b"content"), content_encoding="gzip")

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(RegistryProtocolError, match="encoded"):
                await client.blob_bytes(parse_reference("good.io/app"), digest_of(b"content"), limit=100)

    async def test_docker_hub_has_a_host_of_its_own(self, make_client: Clients) -> None:
        seen: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(str(request.url))
            return reply(404)

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(RegistryNotFound) as caught:
                await client.manifest(parse_reference("python"), platform=AMD64)
        assert seen == ["https://registry-1.docker.io/v2/library/python/manifests/latest"]
        assert caught.value.host == "docker.io"

    @pytest.mark.parametrize("host", ["good.io:99999", "[:::]"])
    async def test_an_impossible_host_is_an_invalid_reference(self, make_client: Clients, host: str) -> None:
        async with make_client() as client:
            with pytest.raises(InvalidReference):
                await client.manifest(parse_reference(f"{host}/app"), platform=AMD64)
