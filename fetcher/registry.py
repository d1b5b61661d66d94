"""The registry client: manifests and blobs by reference, with retries. OCI distribution-spec, pull.

One client a process, for all registries. Everything runs on the event loop
(asyncio's or trio's) and is safe to use from many tasks; what comes back has
been verified against its digest, except for the ranges of `fetcher.blob`, whose
readers verify.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import anyio
import httpx

from fetcher.credentials import CredentialStore
from fetcher.errors import (
    FormatError,
    InvalidReference,
    RegistryNotFound,
    VerificationError,
)
from fetcher.exchange import Answer, Body, CountBytes, CountRequest, Exchange, WriteMethod
from fetcher.http import Subject, gather
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Document,
    Platform,
    ResolvedImage,
    choose_manifest,
    document_type,
    parse_index,
    parse_manifest,
)
from fetcher.reference import Reference, parse_digest, short_digest
from fetcher.retries import Retries, Sleep, retried
from fetcher.settings import RegistrySettings
from fetcher.transport import RegistryTransport
from fetcher.version import VERSION

T = TypeVar("T")

MANIFEST_LIMIT: Final = 4 << 20
"""Bytes; the distribution specification asks registries to take manifests of this size."""

_ACCEPT: Final = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_WITHOUT_RANGE: Final = (200,)


class RegistryClient:
    """Fetches from registries; an async context manager.

    `receive_buffer` bounds the socket buffer (SO_RCVBUF, bytes) of its connections, so that a stream
    which is not read from soon stops the sender; slow links get a smaller one. `on_request` is told the
    kind of each HTTP request, redirected ones included, and `on_bytes` the bytes of each body when it
    ends. `transport` and `sleep` are seams for tests.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        credentials: CredentialStore,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        receive_buffer: int | None = None,
        on_request: CountRequest | None = None,
        on_bytes: CountBytes | None = None,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            transport=transport or RegistryTransport(settings, receive_buffer=receive_buffer),
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(settings.read_timeout_seconds, connect=settings.connect_timeout_seconds),
            headers={"User-Agent": f"layergate/{VERSION}", "Accept": "*/*", "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # kept ones would grow without bound
        )
        self._exchange = Exchange(
            self._http,
            credentials,
            receive_buffer=receive_buffer,
            on_request=on_request,
            on_bytes=on_bytes,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, value, trace)

    async def manifest(self, reference: Reference, *, platform: Platform) -> ResolvedImage:
        """Resolve a reference to the image for `platform`, every step verified by digest.

        Raises RegistryNotFound if it has none for the platform, VerificationError, FormatError, or any
        other RegistryError.
        """
        first = await self.document(reference)
        if first.media_type in MANIFEST_TYPES:
            return ResolvedImage(reference, None, first, self._parsed(reference, first, parse_manifest))
        entries = self._parsed(reference, first, parse_index)
        chosen = choose_manifest(entries, platform)
        if chosen is None:
            offered = (
                ", ".join(sorted({str(entry.platform) for entry in entries if entry.platform})) or "none"
            )
            raise RegistryNotFound(
                f"{reference} has no image for {platform}; there is: {offered}", host=reference.host
            )
        second = await self.document(reference, chosen.digest)
        if second.media_type not in MANIFEST_TYPES:
            raise FormatError(
                f"{reference}: its index lists an index ({short_digest(chosen.digest)}) as an image"
            )
        return ResolvedImage(reference, first, second, self._parsed(reference, second, parse_manifest))

    async def document(self, reference: Reference, digest: str | None = None) -> Document:
        """The index or manifest that `reference` names, or that of `digest` in the same repository, verified.

        Raises VerificationError, FormatError, or any RegistryError.
        """
        digest = digest or reference.digest
        target = digest or reference.target
        subject = self.subject(reference, target)

        async def attempt() -> Document:
            async with self._exchange.open(
                subject, f"manifests/{target}", kind="manifest", headers={"Accept": _ACCEPT}
            ) as answer:
                data = await gather(answer.blocks, subject, MANIFEST_LIMIT)
                served = digest or answer.headers.get("docker-content-digest", "")
                actual = _sha256(data)
                if served.startswith("sha256:") and served != actual:
                    raise VerificationError(f"{subject}: the manifest is {actual}, and not {served}")
                media_type = self._parsed_type(subject, data, answer.headers.get("content-type", ""))
                return Document(actual, media_type, data)

        return await retried(self.retries(), attempt)

    async def blob_bytes(self, reference: Reference, digest: str, *, limit: int) -> bytes:
        """A whole blob of at most `limit` bytes, verified.

        Raises VerificationError, RegistryProtocolError for a larger one, or any other RegistryError.
        """
        parse_digest(digest)

        async def attempt() -> bytes:
            async with self.open_blob(reference, digest) as answer:
                return await gather(answer.blocks, self.subject(reference, digest), limit)

        data = await retried(self.retries(), attempt)
        if _sha256(data) != digest:
            raise VerificationError(f"{reference.name}: the blob {digest} came with other content")
        return data

    def open_blob(
        self,
        reference: Reference,
        digest: str,
        *,
        method: Literal["GET", "HEAD"] = "GET",
        bytes_range: str | None = None,
        accept: Collection[int] = _WITHOUT_RANGE,
    ) -> AbstractAsyncContextManager[Answer]:
        """One try at a blob, unverified; `bytes_range` is a Range header. Raises RegistryError.

        For `fetcher.blob`, which has what it takes to resume.
        """
        return self._exchange.open(
            self.subject(reference, digest),
            f"blobs/{digest}",
            kind="blob",
            method=method,
            headers={} if bytes_range is None else {"Range": bytes_range},
            accept=accept,
            # A signed URL is good for the method it was made for alone.
            location_key=digest if method == "GET" else None,
        )

    def write(
        self,
        subject: Subject,
        url: str | httpx.URL,
        *,
        method: WriteMethod,
        headers: dict[str, str] | None = None,
        body: Body | None = None,
        accept: Collection[int],
    ) -> AbstractAsyncContextManager[Answer]:
        """One try at a request that changes a repository, or asks whether it has to be changed.

        For `fetcher.push`, which has what it takes to resume. Raises RegistryError.
        """
        return self._exchange.write(
            subject, url, method=method, headers=headers or {}, body=body, accept=accept
        )

    def subject(self, reference: Reference, target: str) -> Subject:
        """What a request for a tag or a digest is about; raises InvalidReference for an impossible host."""
        try:
            endpoint = httpx.URL(self._settings.endpoint(reference.host))
        except httpx.InvalidURL as error:
            raise InvalidReference(f"{reference}: {reference.host!r} is not a host ({error})") from error
        return Subject(reference, short_digest(target), endpoint, self._credentials.path)

    def retries(self) -> Retries:
        """The tries of one undertaking, as the settings limit them."""
        return Retries(self._settings.retry_limit, sleep=self._sleep)

    def _parsed(self, reference: Reference, document: Document, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(document.data)
        except FormatError as error:
            raise FormatError(f"{reference}: {short_digest(document.digest)} is {error}") from error

    def _parsed_type(self, subject: Subject, data: bytes, content_type: str) -> str:
        try:
            return document_type(data, content_type)
        except FormatError as error:
            raise FormatError(f"{subject}: {error}") from error


def _sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
