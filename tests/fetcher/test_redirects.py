from __future__ import annotations

import json

import httpx
import pytest

from fetcher.errors import (
    RegistryError,
    RegistryProtocolError,
    RegistryUnauthorized,
)
from fetcher.reference import Reference, parse_reference
from fetcher.settings import RegistryHost, RegistrySettings
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients, digest_of, reply
from tests.registry_faults import Status

pytestmark = pytest.mark.anyio


def reference_to(registry: FaultyRegistry) -> Reference:
    return parse_reference(f"{registry.host}/team/app")


class TestRedirects:
    """The network is a function here, so that there can be TLS and many hosts."""

    async def fetch(
        self, make_client: Clients, *locations: str, first: str = "https://good.io"
    ) -> list[httpx.Request]:
        """Fetch a blob over these redirects; the requests that were made."""
        seen: list[httpx.Request] = []
        auth = {"good.io": {"username": "user", "password": "secret"}}
        make_client.docker_config.write_text(json.dumps({"auths": auth}))

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            if len(seen) == 1:
                return reply(401, www_authenticate="Basic")
            if len(seen) <= len(locations) + 1:
                return reply(307, location=locations[len(seen) - 2])
            return reply(200, b"content")

        plain = first.startswith("http:")
        settings = RegistrySettings(hosts={"good.io": RegistryHost(plain_http=plain)})
        async with make_client(settings, transport=httpx.MockTransport(answer)) as client:
            reference = parse_reference("good.io/team/app")
            assert await client.blob_bytes(reference, digest_of(b"content"), limit=100) == b"content"
        return seen

    async def test_credentials_stay_with_the_registry(self, make_client: Clients) -> None:
        seen = await self.fetch(
            make_client,
            "/elsewhere",
            "https://cdn.io/a?signature=x",
            "https://good.io:444/b",
            "https://good.io/c",
        )
        shown = [(str(request.url), "authorization" in request.headers) for request in seen[1:]]
        assert shown == [
            (f"https://good.io/v2/team/app/blobs/{digest_of(b'content')}", True),
            ("https://good.io/elsewhere", True),
            ("https://cdn.io/a?signature=x", False),
            ("https://good.io:444/b", False),
            ("https://good.io/c", True),
        ]

    async def test_credentials_within_a_location_are_left_out(self, make_client: Clients) -> None:
        seen = await self.fetch(make_client, "https://user:secret@cdn.io/a")
        assert str(seen[-1].url) == "https://cdn.io/a"
        assert "authorization" not in seen[-1].headers

    @pytest.mark.parametrize(
        "location",
        ["http://cdn.io/a", "http://good.io/a", "ftp://cdn.io/a", "file:///etc/passwd", ""],
    )
    async def test_some_places_are_not_gone_to(self, make_client: Clients, location: str) -> None:
        with pytest.raises(RegistryProtocolError, match="redirects to"):
            await self.fetch(make_client, location)

    async def test_a_location_that_is_no_url_is_refused(self, make_client: Clients) -> None:
        transport = httpx.MockTransport(lambda request: reply(307, location="https://a:port"))
        async with make_client(transport=transport) as client:
            with pytest.raises(RegistryError, match="location"):
                await client.blob_bytes(parse_reference("good.io/app"), digest_of(b"content"), limit=100)

    async def test_tls_is_not_given_up_on_the_way(self, make_client: Clients) -> None:
        with pytest.raises(RegistryProtocolError, match="without TLS"):
            await self.fetch(make_client, "https://cdn.io/a", "http://cdn.io/b", first="http://good.io")

    async def test_a_registry_without_tls_may_redirect_without(self, make_client: Clients) -> None:
        seen = await self.fetch(make_client, "http://cdn.io/a", first="http://good.io")
        assert str(seen[-1].url) == "http://cdn.io/a"

    async def test_redirects_come_to_an_end(self, make_client: Clients) -> None:
        with pytest.raises(RegistryProtocolError, match="more than 5 times"):
            await self.fetch(make_client, *[f"https://cdn.io/{number}" for number in range(6)])

    async def test_no_signature_is_in_a_message(self, registry: FaultyRegistry, make_client: Clients) -> None:
        digest = registry.add_blob(b"content")
        registry.redirect_blobs()
        registry.fail("storage", Status(403))
        async with make_client() as client:
            with pytest.raises(RegistryUnauthorized, match=registry.storage_host) as caught:
                await client.blob_bytes(reference_to(registry), digest, limit=100)
        assert "signature" not in str(caught.value)
        assert caught.value.host == registry.host
