from __future__ import annotations

import hashlib
import json

import anyio
import httpx
import pytest

from fetcher.auth import Challenge, parse_challenges
from fetcher.errors import RegistryProtocolError, RegistryUnauthorized, RegistryUnavailable
from fetcher.logs import captured_logs
from fetcher.reference import Reference, parse_reference
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients, reply
from tests.registry_faults import BasicLogin, BearerLogin, Status, docker_config

SECRET = "opensesame"
DATA = b"some blob"


def log_in(make_client: Clients, host: str, username: str = "user", password: str = SECRET) -> None:
    make_client.docker_config.write_text(docker_config(host, BasicLogin(username, password)))


def app(registry: FaultyRegistry, name: str = "app") -> Reference:
    return parse_reference(f"{registry.host}/team/{name}")


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        ([], []),
        (["Basic"], [Challenge("basic", {})]),
        (['Basic realm="a, b"'], [Challenge("basic", {"realm": "a, b"})]),
        (
            ['BEARER Realm="https://a/token",service=reg , scope="repository:x:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://a/token", "service": "reg", "scope": "repository:x:pull,push"},
                )
            ],
        ),
        (
            ['Negotiate, Basic realm="a", Bearer realm="b\\"c"'],
            [
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": "a"}),
                Challenge("bearer", {"realm": 'b"c'}),
            ],
        ),
        (
            ['Basic realm="a"', "Bearer realm=b"],
            [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})],
        ),
        (['Bearer realm = "a"'], [Challenge("bearer", {"realm": "a"})]),
        ([""], []),
        (["=,="], []),
    ],
)
def test_challenges_are_parsed(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(headers) == challenges


@pytest.mark.anyio
class TestBasic:
    async def test_credentials_are_shown_when_asked_for(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BasicLogin("user", SECRET))
        log_in(make_client, registry.host)
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            for _ in range(3):
                assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert [("authorization" in headers) for _, _, _, headers in registry.log] == [
            False,
            True,
            True,
            True,
        ]

    async def test_missing_credentials_are_named_as_missing(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BasicLogin("user", SECRET))
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            with pytest.raises(RegistryUnauthorized, match="there are no credentials") as caught:
                await client.blob_bytes(app(registry), digest, limit=100)
            assert str(make_client.docker_config) in str(caught.value)
            assert registry.host in str(caught.value)
            log_in(make_client, registry.host)
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA

    async def test_wrong_credentials_are_refused_once(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BasicLogin("user", SECRET))
        log_in(make_client, registry.host, password="wrong-secret")
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            with pytest.raises(RegistryUnauthorized, match="check the credentials") as caught:
                await client.blob_bytes(app(registry), digest, limit=100)
            assert "wrong-secret" not in str(caught.value)
            log_in(make_client, registry.host)
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert make_client.waits == []


@pytest.mark.anyio
class TestBearer:
    async def test_a_token_serves_all_requests_for_its_repository(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin("user", SECRET))
        log_in(make_client, registry.host)
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            for name in ("one", "one", "two", "two"):
                assert await client.blob_bytes(app(registry, name), digest, limit=100) == DATA
        assert registry.requests == {"blob": 6, "token": 2}
        assert make_client.requests == registry.requests
        assert registry.connections == 1
        asked = [httpx.URL(path).params.multi_items() for kind, _, path, _ in registry.log if kind == "token"]
        assert asked == [
            [("service", "faulty, registry"), ("scope", f"repository:team/{name}:pull")]
            for name in ("one", "two")
        ]

    async def test_many_tasks_share_one_token(self, registry: FaultyRegistry, make_client: Clients) -> None:
        registry.require(BearerLogin())
        digest = registry.add_blob(DATA)
        async with make_client() as client, anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(lambda: client.blob_bytes(app(registry), digest, limit=100))
        assert registry.requests["token"] == 1

    async def test_without_credentials_tokens_are_anonymous(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin())
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert "authorization" not in next(headers for kind, _, _, headers in registry.log if kind == "token")

    async def test_an_identity_token_buys_tokens_by_oauth2(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin(identity_token=SECRET))
        config = {"auths": {registry.host: {"identitytoken": SECRET}}}
        make_client.docker_config.write_text(json.dumps(config))
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert [method for kind, method, _, _ in registry.log if kind == "token"] == ["POST"]

    async def test_a_token_that_is_refused_is_renewed(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin())
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            await client.blob_bytes(app(registry), digest, limit=100)
            registry.expire_tokens()
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert registry.requests == {"blob": 4, "token": 2}

    async def test_a_token_that_has_expired_is_renewed_before_it_is_refused(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin(expires_in=0))
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            with pytest.raises(RegistryUnauthorized):
                await client.blob_bytes(app(registry), digest, limit=100)
            registry.require(BearerLogin(expires_in=300))
            before = registry.requests["blob"]
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
        assert registry.requests["blob"] == before + 1

    async def test_wrong_credentials_are_not_tried_again(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin("user", SECRET))
        log_in(make_client, registry.host, password="wrong-secret")
        digest = registry.add_blob(DATA)
        with captured_logs() as logs:
            async with make_client() as client:
                with pytest.raises(RegistryUnauthorized, match="check the credentials") as caught:
                    await client.blob_bytes(app(registry), digest, limit=100)
        assert registry.requests == {"blob": 1, "token": 1}
        assert "wrong-secret" not in str(caught.value) + repr(logs)

    async def test_access_that_is_denied_is_not_tried_again(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin())
        registry.fail("blob", Status(403), times=1)
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            with pytest.raises(RegistryUnauthorized) as caught:
                await client.blob_bytes(app(registry), digest, limit=100)
        assert caught.value.status == 403
        assert registry.requests == {"blob": 1}

    async def test_a_token_service_that_fails_is_tried_again(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin())
        registry.fail("token", Status(503), times=2)
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            assert await client.blob_bytes(app(registry), digest, limit=100) == DATA
            registry.expire_tokens()
            registry.fail("token", Status(500))
            with pytest.raises(RegistryUnavailable):
                await client.blob_bytes(app(registry), digest, limit=100)

    async def test_an_answer_without_a_token_is_refused(
        self, registry: FaultyRegistry, make_client: Clients
    ) -> None:
        registry.require(BearerLogin())
        registry.fail("token", Status(200))
        digest = registry.add_blob(DATA)
        async with make_client() as client:
            with pytest.raises(RegistryProtocolError, match="no token"):
                await client.blob_bytes(app(registry), digest, limit=100)


@pytest.mark.anyio
class TestWhoIsTrusted:
    """Where tokens and passwords go; the network is a function here, for TLS and many hosts."""

    async def test_a_token_is_for_the_registry_it_was_given_to(self, make_client: Clients) -> None:
        """A registry that names another's token service gets none of the other's tokens."""
        log_in(make_client, "good.io")
        seen: list[tuple[str, str | None]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append((request.url.host, request.headers.get("authorization")))
            if request.url.host == "auth.good.io":
                known = request.headers.get("authorization") is not None
                return reply(200, b'{"token": "for-good-io"}' if known else b'{"token": "anonymous"}')
            if "authorization" not in request.headers:
                challenge = 'Bearer realm="https://auth.good.io/token",service="good.io"'
                return reply(401, www_authenticate=challenge)
            return reply(200, DATA)

        digest = "sha256:" + hashlib.sha256(DATA).hexdigest()
        async with make_client(transport=httpx.MockTransport(answer)) as client:
            for host in ("good.io", "evil.io"):
                await client.blob_bytes(parse_reference(f"{host}/team/app"), digest, limit=100)
        shown = {host: header for host, header in seen if header is not None and host != "auth.good.io"}
        assert shown == {"good.io": "Bearer for-good-io", "evil.io": "Bearer anonymous"}

    @pytest.mark.parametrize(
        "realm", ["http://auth.good.io/token", "ftp://auth.good.io", "", "https://a:port"]
    )
    async def test_credentials_are_not_sent_just_anywhere(self, make_client: Clients, realm: str) -> None:
        log_in(make_client, "good.io")
        seen: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.host)
            return reply(401, www_authenticate=f'Bearer realm="{realm}"')

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(RegistryProtocolError, match="token service"):
                await client.blob_bytes(parse_reference("good.io/app"), f"sha256:{1:064x}", limit=100)
        assert seen == ["good.io"]

    async def test_an_unknown_scheme_is_refused(self, make_client: Clients) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            return reply(401, www_authenticate="Negotiate")

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(RegistryProtocolError, match="neither Bearer nor Basic"):
                await client.blob_bytes(parse_reference("good.io/app"), f"sha256:{1:064x}", limit=100)

    async def test_both_a_realms_query_and_its_scope_are_asked_for(self, make_client: Clients) -> None:
        asked: list[list[tuple[str, str]]] = []

        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/token":
                asked.append(request.url.params.multi_items())
                return reply(200, b'{"access_token": "t"}')
            if "authorization" not in request.headers:
                challenge = (
                    'Basic realm="x", Bearer realm="https://good.io/token?a=b",service="s",scope="aws"'
                )
                return reply(401, www_authenticate=challenge)
            return reply(404)

        async with make_client(transport=httpx.MockTransport(answer)) as client:
            with pytest.raises(Exception, match="does not have it"):
                await client.blob_bytes(parse_reference("good.io/app"), f"sha256:{1:064x}", limit=100)
        assert asked == [[("a", "b"), ("service", "s"), ("scope", "repository:app:pull"), ("scope", "aws")]]
