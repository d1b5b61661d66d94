"""A registry that sends without end, wants to be remembered, or sends us elsewhere.

What can be counted is counted: the bytes that are taken of an answer without an end, the requests that
another host gets.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import httpx
import pytest

from fetcher.blob import RegistryBlob
from fetcher.errors import FetchError, RegistryError, RegistryProtocolError, VerificationError
from fetcher.manifest import Platform
from fetcher.reference import Reference, parse_reference
from fetcher.registry import MANIFEST_LIMIT, RegistryClient
from fetcher.settings import RegistrySettings
from tests.fetcher.conftest import Clients, digest_of, reply
from tests.hostile.raw_server import RawServer, raw_server, redirect, without_end

pytestmark = pytest.mark.anyio

BLOCK = 64 << 10
IMAGE = parse_reference("good.io/team/app")
DIGEST = digest_of(b"content")


class Endless(httpx.AsyncByteStream):
    """A body that never ends; `taken` is how much of it was asked for."""

    def __init__(self) -> None:
        self.taken = 0
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self.taken < 1 << 30:
            if self._closed:
                raise httpx.ReadError("the connection was closed")
            self.taken += BLOCK
            yield bytes(BLOCK)

    async def aclose(self) -> None:
        self._closed = True


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


Ask = Callable[[RegistryClient], Awaitable[object]]


def blob(client: RegistryClient, size: int | None = None) -> RegistryBlob:
    return RegistryBlob(client, IMAGE, DIGEST, size)


class TestAnswersWithoutAnEnd:
    @pytest.mark.parametrize(
        ("ask", "status", "content_range", "limit"),
        [
            (lambda client: client.manifest(IMAGE, platform=Platform.host()), 200, "", MANIFEST_LIMIT),
            (lambda client: client.blob_bytes(IMAGE, DIGEST, limit=BLOCK), 200, "", BLOCK),
            (lambda client: blob(client).tail(BLOCK), 206, f"bytes 0-{BLOCK - 1}/{BLOCK}", BLOCK),
            (lambda client: blob(client).tail(BLOCK), 206, f"bytes 0-{BLOCK - 2}/{BLOCK - 1}", BLOCK),
            (lambda client: blob(client).read(0, BLOCK), 206, f"bytes 0-{BLOCK - 1}/*", BLOCK),
            (lambda client: blob(client).read(0, BLOCK), 200, "", BLOCK),
            (lambda client: blob(client).read(0, BLOCK), 404, "", 0),
            (lambda client: blob(client).read(0, BLOCK), 416, "", 0),
            (lambda client: client.manifest(IMAGE, platform=Platform.host()), 401, "", 0),
        ],
        ids=["manifest", "blob", "tail", "short tail", "range", "whole", "404", "416", "401"],
    )
    async def test_no_more_is_taken_than_was_asked_for(
        self, make_client: Clients, ask: Ask, status: int, content_range: str, limit: int
    ) -> None:
        body = Endless()

        def answer(request: httpx.Request) -> httpx.Response:
            return httpx.Response(status, headers={"content-range": content_range}, stream=body)

        async with make_client(
            RegistrySettings(retry_limit=0), transport=httpx.MockTransport(answer)
        ) as client:
            with suppress(FetchError):
                await ask(client)
        assert body.taken <= limit + 2 * BLOCK

    async def test_a_tail_is_what_was_announced_whatever_follows(self, make_client: Clients) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            headers = {"content-range": "bytes 4-9/10"}
            return httpx.Response(206, headers=headers, stream=httpx.ByteStream(b"456789 and more"))

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            assert await blob(client).tail(6) == (b"456789", 10)

    async def test_a_tokens_answer_is_not_read_without_end(self, make_client: Clients) -> None:
        body = Endless()

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/token":
                return httpx.Response(200, stream=body)
            return reply(401, www_authenticate='Bearer realm="https://good.io/token"')

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(RegistryProtocolError, match="more than"):
                await client.document(IMAGE)
        assert body.taken <= (1 << 20) + 2 * BLOCK


class TestSocketsWithoutAnEnd:
    """As above, but by what the network's own layers take."""

    HEADER = b"X-Header: " + b"x" * 1000 + b"\r\n"
    CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    TAIL = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-99/100\r\n"

    @pytest.mark.parametrize(
        ("beginning", "block"),
        [
            (b"HTTP/1.1 200 OK\r\n", HEADER),
            (b"HTTP/1.1 404 Not Found\r\n", HEADER),
            (b"HTTP/1.1 " + b"2" * 100, b"2" * 1000),
            (TAIL + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK),
            (TAIL + b"Transfer-Encoding: chunked\r\n\r\n1", b"0" * 1000),
            (TAIL + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", HEADER),
            (TAIL + b"\r\n", bytes(1 << 16)),
            (b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n", CHUNK),
        ],
        ids=["headers", "refusal", "status", "chunks", "chunk size", "trailers", "until closed", "401"],
    )
    async def test_they_are_hung_up_on(
        self, make_client: Clients, server: RawServer, beginning: bytes, block: bytes
    ) -> None:
        server.words = without_end(beginning, block)
        async with make_client(RegistrySettings(retry_limit=0)) as client:
            tail = RegistryBlob(client, parse_reference(f"{server.host}/app"), DIGEST).tail(100)
            with suppress(RegistryError):
                assert len((await tail)[0]) == 100
        assert server.sent < 64 << 20  # what the sockets' buffers took; it would have gone on


class TestBeingRemembered:
    async def test_cookies_are_not_kept_for_anybody(self, make_client: Clients) -> None:
        seen: list[httpx.Request] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            cookie = f"n{len(seen)}=value; Path=/; Max-Age=999"
            if request.url.host == "good.io":
                return reply(307, set_cookie=cookie, location="https://cdn.good.io/blob")
            return reply(200, b"content", set_cookie=f"{cookie}; Domain=good.io")

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            for _ in range(3):
                assert await client.blob_bytes(IMAGE, DIGEST, limit=100) == b"content"
        assert len(seen) == 4
        assert not [request for request in seen if "cookie" in request.headers]


class Elsewhere:
    """A registry that asks for credentials, and then sends whoever has shown them to `location`."""

    def __init__(self, location: str, content: bytes = b"content") -> None:
        self.location = location
        self.content = content
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.netloc == b"good.io":
            if "authorization" not in request.headers:
                return reply(401, www_authenticate="Basic")
            return reply(307, location=self.location)
        return reply(200, self.content)

    @property
    def others(self) -> list[httpx.Request]:
        """What went to somebody else."""
        return [request for request in self.requests if request.url.netloc != b"good.io"]


@pytest.fixture
def fetch(make_client: Clients) -> Callable[[Elsewhere], Awaitable[bytes]]:
    """A blob, by somebody who has credentials for good.io."""
    auth = {"good.io": {"username": "user", "password": "secret"}}
    make_client.docker_config.write_text(json.dumps({"auths": auth}))

    async def fetch(registry: Elsewhere) -> bytes:
        async with make_client(transport=httpx.MockTransport(registry)) as client:
            return await client.blob_bytes(IMAGE, DIGEST, limit=100)

    return fetch


class TestBeingSentElsewhere:
    @pytest.mark.parametrize(
        "location",
        [
            "file:///etc/shadow",
            "file://good.io/etc/shadow",
            "unix:///run/containerd/containerd.sock",
            "data:text/plain,content",
            "gopher://127.0.0.1:6379/_x",
            "http://169.254.169.254/latest/meta-data/",
            "http://10.0.0.1/blob",
            "http://127.0.0.1:2375/containers",
            "http://[::1]/",
            "http://good.io/v2/team/app/blobs/x",
            "http:blob",
            "https://",
            "//",
        ],
    )
    async def test_another_scheme_is_refused_and_nobody_is_asked(
        self, fetch: Callable[[Elsewhere], Awaitable[bytes]], location: str
    ) -> None:
        registry = Elsewhere(location)
        with pytest.raises(RegistryProtocolError, match=r"good\.io.*(redirects|leads to)"):
            await fetch(registry)
        assert registry.others == []

    @pytest.mark.parametrize(
        "location",
        [
            "https://10.0.0.1/blob",
            "https://evil.io/blob",
            "//evil.io/blob",
            "https://good.io@evil.io/blob",
            "https://good.io:1/blob",
            "https://user:secret@evil.io/blob",
        ],
    )
    async def test_another_host_gets_no_credentials_and_is_not_believed(
        self, fetch: Callable[[Elsewhere], Awaitable[bytes]], location: str
    ) -> None:
        good, bad = Elsewhere(location), Elsewhere(location, b"what somebody else keeps")
        assert await fetch(good) == b"content"
        with pytest.raises(VerificationError, match=DIGEST):
            await fetch(bad)
        for registry in (good, bad):
            assert registry.others
            for request in registry.others:
                assert not {"authorization", "cookie", "proxy-authorization"} & set(request.headers)
                assert "secret" not in str(request.url)

    @pytest.mark.parametrize(
        "host", ["a..b", f"{'a' * 64}.io", "xn--a", "a b", "%00", "a:99999", "a:-1", "[", "\xff" * 70]
    )
    async def test_a_host_that_is_none_is_an_error_of_the_registrys(
        self, make_client: Clients, server: RawServer, host: str
    ) -> None:
        """Resolvers have errors of their own; met by one layer, one would end the whole process."""
        server.words = redirect(f"http://{host}/blob")
        async with make_client(RegistrySettings(retry_limit=0)) as client:
            with pytest.raises(RegistryError, match=server.host):
                await client.blob_bytes(parse_reference(f"{server.host}/app"), DIGEST, limit=100)

    @pytest.mark.parametrize("realm", ["https://xn--a/token", "https:token", "http://good.io/token"])
    async def test_so_is_that_of_a_token_service(self, make_client: Clients, realm: str) -> None:
        transport = httpx.MockTransport(
            lambda request: reply(401, www_authenticate=f'Bearer realm="{realm}"')
        )
        async with make_client(transport=transport) as client:
            with pytest.raises(RegistryProtocolError, match="token service"):
                await client.document(IMAGE)

    async def test_a_token_is_shown_to_its_registry_alone(self, make_client: Clients) -> None:
        """A registry whose token service is another's gets the token that its own name bought, no other."""
        auth = {name: {"username": "user", "password": f"of-{name}"} for name in ("good.io", "evil.io")}
        make_client.docker_config.write_text(json.dumps({"auths": auth}))
        seen: list[tuple[str, str]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            shown = request.headers.get("authorization", "")
            seen.append((request.url.host, shown))
            if request.url.host == "auth.good.io":
                return reply(200, json.dumps({"token": f"bought-by-{len(seen)}"}).encode())
            if not shown:
                return reply(401, www_authenticate='Bearer realm="https://auth.good.io/token"')
            return reply(404)

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            for host in ("good.io", "evil.io"):
                with pytest.raises(RegistryError):
                    await client.document(Reference(host, "team/app", "latest", None))
        tokens = {host: {shown for name, shown in seen if name == host and shown} for host, _ in seen}
        assert len(tokens["good.io"]) == 1
        assert len(tokens["evil.io"]) == 1
        assert tokens["good.io"] != tokens["evil.io"]
        assert len(tokens["auth.good.io"]) == 2  # each by its own credentials
