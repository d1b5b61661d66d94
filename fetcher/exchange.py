"""One request to a registry, up to its final answer: authentication and redirects, no retries.

Redirects are followed by hand. The Authorization header never leaves the
registry's own host and port; TLS is never given up; and where a blob was found
is remembered, which saves a round trip for each further range of it, until the
storage says that the URL has expired.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import httpx

from fetcher.auth import Authenticator, parse_challenges
from fetcher.credentials import CredentialStore
from fetcher.errors import RegistryUnreachable
from fetcher.http import Subject, close_body, discard, network_errors, raise_status
from fetcher.window import ReceiveWindow

Kind = Literal["manifest", "blob", "token", "upload"]
WriteMethod = Literal["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"]
CountRequest = Callable[[Kind], None]
CountBytes = Callable[[Kind, int], None]

_NO_URL: Final = (httpx.InvalidURL, UnicodeError)
"""What httpx and resolvers raise for URLs and hosts that cannot be: UnicodeError is IDNA's."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REDIRECT_LIMIT: Final = 5
_REMEMBERED: Final = 1024
"""Locations of blobs; each takes about 1 KB."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A registry's final answer; `blocks` is its body as it comes, if `status` is below 400.

    Who reads much of it tells `window` of each block, if there is one.
    """

    status: int
    headers: httpx.Headers
    blocks: AsyncIterator[bytes]
    url: httpx.URL
    window: ReceiveWindow | None


class Body(Protocol):
    """What a request carries: it can be read again from its start, for another try."""

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    def blocks(self) -> AsyncIterator[bytes]:
        """All of it, in blocks of no particular size."""
        ...


class _BodyStream(httpx.AsyncByteStream):
    """A body as httpx takes it. Its own stream for iterators is a generator that nobody closes."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body.blocks()


class Exchange:
    """Sends requests through one httpx client; knows its registries' tokens and its blobs' locations."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        credentials: CredentialStore,
        *,
        receive_buffer: int | None = None,
        on_request: CountRequest | None = None,
        on_bytes: CountBytes | None = None,
    ) -> None:
        self._http = http
        self._receive_buffer = receive_buffer
        self._on_request = on_request
        self._on_bytes = on_bytes
        self._authenticator = Authenticator(credentials, self._send_for_token)
        self._locations: dict[tuple[str, str], httpx.URL] = {}

    @asynccontextmanager
    async def open(
        self,
        subject: Subject,
        path: str,
        *,
        kind: Kind,
        headers: dict[str, str],
        method: Literal["GET", "HEAD"] = "GET",
        accept: Collection[int] = (200,),
        location_key: str | None = None,
    ) -> AsyncIterator[Answer]:
        """Ask for `path` below the registry's /v2/NAME/; the answer's status is one of `accept`.

        Within, httpx's errors become RegistryErrors. With `location_key` (a blob's digest) the place
        that the registry redirects to is remembered. Raises RegistryError.
        """
        response = await self._respond(subject, path, kind, method, headers, location_key)
        async with self._answered(subject, response, kind, method, accept) as answer:
            yield answer

    @asynccontextmanager
    async def write(
        self,
        subject: Subject,
        url: str | httpx.URL,
        *,
        method: WriteMethod,
        headers: dict[str, str],
        body: Body | None = None,
        accept: Collection[int],
    ) -> AsyncIterator[Answer]:
        """Send a request of a push to `url`, which may be relative to the registry; like `open` otherwise."""
        target = subject.endpoint.join(url)
        response = await self._resolve(subject, target, "upload", method, headers, body)
        async with self._answered(subject, response, "upload", method, accept) as answer:
            yield answer

    @asynccontextmanager
    async def _answered(
        self, subject: Subject, response: httpx.Response, kind: Kind, method: str, accept: Collection[int]
    ) -> AsyncIterator[Answer]:
        blocks = response.aiter_raw()
        try:
            with network_errors(subject, response.request.url):
                if response.status_code >= 400:
                    await discard(response)
                if response.status_code not in accept:
                    anonymous = self._authenticator.is_anonymous(subject)
                    raise_status(subject, response, anonymous=anonymous)
                encoding = response.headers.get("content-encoding", "identity")
                if encoding != "identity":
                    raise subject.protocol_error(f"the answer is encoded ({encoding}), though it must not be")
                if method == "HEAD":
                    await response.aread()
                yield Answer(
                    response.status_code,
                    response.headers,
                    blocks,
                    response.request.url,
                    self._window(response),
                )
        finally:
            if self._on_bytes is not None:
                self._on_bytes(kind, response.num_bytes_downloaded)
            await close_body(response, blocks)

    def _window(self, response: httpx.Response) -> ReceiveWindow | None:
        stream = response.extensions.get("network_stream")  # a transport of a test's has none
        if self._receive_buffer is None or stream is None:
            return None
        return ReceiveWindow(stream.get_extra_info("socket"), self._receive_buffer)

    async def _respond(
        self,
        subject: Subject,
        path: str,
        kind: Kind,
        method: str,
        headers: dict[str, str],
        location_key: str | None,
    ) -> httpx.Response:
        key = (subject.reference.name, location_key or "")
        location = self._locations.get(key)
        if location is not None:
            try:
                response = await self._send(
                    subject, kind, self._http.build_request(method, location, headers=headers)
                )
            except RegistryUnreachable:
                self._locations.pop(key, None)
                raise
            if response.status_code in (200, 206, 416):
                return response
            self._locations.pop(key, None)
            if response.status_code == 429 or response.status_code >= 500:
                return response
            # Stores have 400, 403, 404 or 410 for a URL whose signature has expired.
            await discard(response)
        url = subject.endpoint.join(f"/v2/{subject.reference.repository}/{path}")
        response = await self._resolve(subject, url, kind, method, headers)
        final = response.request.url
        if location_key is not None and not subject.is_registry(final) and response.status_code in (200, 206):
            if len(self._locations) >= _REMEMBERED:
                del self._locations[next(iter(self._locations))]
            self._locations[key] = final
        return response

    async def _resolve(
        self,
        subject: Subject,
        url: httpx.URL,
        kind: Kind,
        method: str,
        headers: dict[str, str],
        body: Body | None = None,
    ) -> httpx.Response:
        """Follow challenges and redirects to an answer that is neither."""
        authorization = await self._authenticator.authorization(subject)
        challenged = False
        redirects = 0
        while True:
            request = self._http.build_request(method, url, headers=headers)
            if body is not None:
                request.headers["Content-Length"] = str(body.length)
                request.stream = _BodyStream(body)
            if authorization is not None and subject.is_registry(url):
                request.headers["Authorization"] = authorization
            response = await self._send(subject, kind, request)
            if response.status_code == 401 and subject.is_registry(url) and not challenged:
                challenged = True
                await discard(response)
                challenges = parse_challenges(response.headers.get_list("www-authenticate"))
                authorization = await self._authenticator.answer(subject, challenges, authorization)
            elif response.status_code in _REDIRECTS:
                redirects += 1
                await discard(response)
                url = referred_url(subject, response.request.url, response.headers)
                if redirects > _REDIRECT_LIMIT:
                    raise subject.protocol_error(f"it redirects more than {_REDIRECT_LIMIT} times")
            else:
                return response

    async def _send(self, subject: Subject, kind: Kind, request: httpx.Request) -> httpx.Response:
        if self._on_request is not None:
            self._on_request(kind)
        try:
            with network_errors(subject, request.url):
                return await self._http.send(request, stream=True)
        except _NO_URL as error:
            # httpx looks into each Location; and that a host is none may be found when it is resolved.
            party = subject.party(request.url)
            raise subject.protocol_error(f"{party} is no host, or leads to what is no URL") from error

    async def _send_for_token(self, subject: Subject, request: httpx.Request) -> httpx.Response:
        request.headers.update(self._http.headers)
        request.extensions["timeout"] = self._http.timeout.as_dict()
        return await self._send(subject, "token", request)


def referred_url(subject: Subject, origin: httpx.URL, headers: httpx.Headers) -> httpx.URL:
    """Where the Location of an answer from `origin` leads; RegistryProtocolError if we do not go there."""
    location = headers.get("location", "")
    try:
        url = origin.join(location)
        host = url.host
    except _NO_URL as error:
        raise subject.protocol_error(f"{subject.party(origin)} redirects to what is no URL") from error
    if not location or url.scheme not in ("http", "https") or not host:
        raise subject.protocol_error(f"{subject.party(origin)} redirects to what is no HTTP URL")
    if "https" in (origin.scheme, subject.endpoint.scheme) and url.scheme != "https":
        raise subject.protocol_error(f"{subject.party(origin)} redirects to {host} without TLS: refused")
    return url.copy_with(username="", password="")
