"""Authentication to registries: RFC 9110 challenges, docker's bearer tokens, basic.

Docker's token specification in short: the registry answers 401 and names a
realm; the realm gives a token for a scope, by GET with basic credentials or
none, or by an OAuth2 POST with an identity token; the token goes into the
Authorization header.

What was learnt is kept by registry host, so no registry is ever given a token
that another one's credentials have bought.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import urlencode

import anyio
import httpx
import msgspec

from fetcher.credentials import Credential, CredentialStore
from fetcher.http import Subject, close_body, gather, network_errors, raise_status

TokenSender = Callable[[Subject, httpx.Request], Awaitable[httpx.Response]]
"""Sends a request for a token; the answer's body is still to be read, and closed."""

_CLIENT_ID: Final = "layergate"
_DEFAULT_LIFETIME: Final = 60.0
"""Seconds; docker's specification has it so for tokens that do not say."""
_RENEWAL_SHARE: Final = 0.9
_ANSWER_LIMIT: Final = 1 << 20

_SCHEME: Final = re.compile(r"[ ,]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?: +(?!=)|$|(?=,))")
_PARAMETER: Final = re.compile(r'[ ,]*([A-Za-z0-9_.-]+) *= *(?:"((?:[^"\\]|\\.)*)"|([^ ,"]+))')
_TOKEN: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; scheme and parameter names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: list[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers; what makes no sense is left out."""
    challenges = []
    for header in headers:
        position = 0
        while match := _SCHEME.match(header, position):
            position = match.end()
            parameters = {}
            while parameter := _PARAMETER.match(header, position):
                position = parameter.end()
                quoted, plain = parameter[2], parameter[3]
                value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                parameters[parameter[1].lower()] = value
            challenges.append(Challenge(match[1].lower(), parameters))
    return challenges


@dataclass(frozen=True, slots=True)
class _Grant:
    """How a registry wants us to show who we are, for one repository and what is to be done with it."""

    host: str
    scheme: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()


_Undertaking: TypeAlias = tuple[str, str, bool]
"""Registry, repository, and whether it is pushed to."""


@dataclass(slots=True)
class _Authorization:
    """An Authorization header (None: go without), and when to renew it (the clock of the event loop)."""

    header: str | None
    renew_at: float
    anonymous: bool


class _TokenAnswer(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


_ANSWERS: Final = msgspec.json.Decoder(_TokenAnswer)


class Authenticator:
    """Keeps what each registry asked for and granted; safe to use from many tasks."""

    def __init__(self, credentials: CredentialStore, send: TokenSender) -> None:
        self._credentials = credentials
        self._send = send
        self._grants: dict[_Undertaking, _Grant] = {}
        self._authorizations: dict[_Grant, _Authorization] = {}
        self._locks: dict[_Grant, anyio.Lock] = {}

    def is_anonymous(self, subject: Subject) -> bool:
        """Whether the last request about `subject` went without credentials."""
        grant = self._grants.get(_undertaking(subject))
        authorization = self._authorizations.get(grant) if grant is not None else None
        return authorization is None or authorization.anonymous

    async def authorization(self, subject: Subject) -> str | None:
        """The Authorization header to send at first; None until the registry has asked for one.

        Raises RegistryError if a token has to be renewed and cannot be.
        """
        grant = self._grants.get(_undertaking(subject))
        return None if grant is None else await self._authorized(grant, subject, refused=None)

    async def answer(self, subject: Subject, challenges: list[Challenge], refused: str | None) -> str | None:
        """The Authorization header that answers a 401; `refused` is the one it was the answer to.

        Raises RegistryUnauthorized if there is none to give, or any other RegistryError.
        """
        grant = _grant(subject, challenges)
        self._grants[_undertaking(subject)] = grant
        return await self._authorized(grant, subject, refused=refused)

    async def _authorized(self, grant: _Grant, subject: Subject, *, refused: str | None) -> str | None:
        async with self._locks.setdefault(grant, anyio.Lock()):
            known = self._authorizations.get(grant)
            if known is not None and anyio.current_time() < known.renew_at and known.header != refused:
                return known.header
            credential = await self._credentials.lookup(grant.host)
            if grant.scheme == "basic":
                fresh = _basic_authorization(credential)
            else:
                fresh = await self._fetch_token(grant, credential, subject)
            self._authorizations[grant] = fresh
            if fresh.header is None or fresh.header == refused:
                raise subject.unauthorized(401, anonymous=fresh.anonymous)
            return fresh.header

    async def _fetch_token(
        self, grant: _Grant, credential: Credential | None, subject: Subject
    ) -> _Authorization:
        request = _token_request(grant, credential)
        asked_at = anyio.current_time()
        response = await self._send(subject, request)
        blocks = response.aiter_raw()
        try:
            with network_errors(subject, request.url):
                if response.status_code in (400, 401, 403):
                    # OAuth2 has 400 for a refresh token that is not valid any more (RFC 6749, 5.2).
                    raise subject.unauthorized(response.status_code, anonymous=credential is None)
                if response.status_code != 200:
                    raise_status(subject, response, anonymous=credential is None)
                body = await gather(blocks, subject, _ANSWER_LIMIT)
        finally:
            await close_body(response, blocks)
        try:
            answer = _ANSWERS.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise subject.protocol_error(f"the token service {request.url.host} gives no token") from error
        token = answer.token or answer.access_token
        if not _TOKEN.fullmatch(token):
            raise subject.protocol_error(f"the token service {request.url.host} gives no token")
        lifetime = _DEFAULT_LIFETIME if answer.expires_in is None else max(answer.expires_in, 0.0)
        return _Authorization(
            f"Bearer {token}", asked_at + lifetime * _RENEWAL_SHARE, anonymous=credential is None
        )


def _undertaking(subject: Subject) -> _Undertaking:
    return subject.host, subject.reference.repository, subject.pushing


def _grant(subject: Subject, challenges: list[Challenge]) -> _Grant:
    by_scheme = {challenge.scheme: challenge.parameters for challenge in reversed(challenges)}
    if "bearer" in by_scheme:
        parameters = by_scheme["bearer"]
        realm = parameters.get("realm", "")
        try:
            url = httpx.URL(realm)
            host = url.host
        except (httpx.InvalidURL, UnicodeError) as error:  # the latter for a host that IDNA does not know
            raise subject.protocol_error("the realm of its token service is no URL") from error
        if url.scheme not in ("http", "https") or not host:
            raise subject.protocol_error("the realm of its token service is no URL")
        if subject.endpoint.scheme == "https" and url.scheme != "https":
            raise subject.protocol_error("it sends credentials to a token service without TLS: refused")
        actions = "pull,push" if subject.pushing else "pull"
        own = f"repository:{subject.reference.repository}:{actions}"
        asked = parameters.get("scope", "").split()
        # The scope is ours to choose, but some services know only the one of their challenge.
        scopes = tuple(dict.fromkeys([own, *asked]))
        return _Grant(subject.host, "bearer", realm, parameters.get("service", ""), scopes)
    if "basic" in by_scheme:
        return _Grant(subject.host, "basic")
    raise subject.protocol_error("it asks for a kind of authentication that is neither Bearer nor Basic", 401)


def _basic_authorization(credential: Credential | None) -> _Authorization:
    if credential is None or credential.identity_token:
        return _Authorization(None, float("inf"), anonymous=True)
    return _Authorization(_basic(credential), float("inf"), anonymous=False)


def _token_request(grant: _Grant, credential: Credential | None) -> httpx.Request:
    if credential is not None and credential.identity_token:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": credential.identity_token,
            "service": grant.service,
            "scope": " ".join(grant.scopes),
            "client_id": _CLIENT_ID,
        }
        return httpx.Request("POST", grant.realm, data=form)
    parameters = [("scope", scope) for scope in grant.scopes]
    if grant.service:
        parameters.insert(0, ("service", grant.service))
    url = httpx.URL(grant.realm)
    query = url.query.decode("ascii")
    # `params=` would replace the query that a realm may have.
    url = url.copy_with(query="&".join(filter(None, (query, urlencode(parameters)))).encode())
    headers = {} if credential is None else {"Authorization": _basic(credential)}
    return httpx.Request("GET", url, headers=headers)


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}".encode()
    return "Basic " + base64.b64encode(pair).decode()
