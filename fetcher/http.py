"""The boundary to httpx: its errors, and HTTP's statuses, become ours here and nowhere else."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NoReturn

import httpx

from fetcher.errors import (
    RegistryNotFound,
    RegistryProtocolError,
    RegistryUnauthorized,
    RegistryUnreachable,
)
from fetcher.reference import Reference
from fetcher.retries import Busy, CertificateRefused, parse_retry_after

_DRAIN_LIMIT: Final = 64 << 10
"""An unwanted body up to this size is read, to keep its connection; a larger one is hung up on."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a request is about, in the words of its error messages; `pushing` asks for the right to write."""

    reference: Reference
    what: str
    endpoint: httpx.URL
    credentials_path: str
    pushing: bool = False

    @property
    def host(self) -> str:
        """The registry."""
        return self.reference.host

    def __str__(self) -> str:
        return f"{self.reference.name}: {self.what}"

    def is_registry(self, url: httpx.URL) -> bool:
        """Whether `url` is the registry's own, and not one that it redirects to."""
        return (url.scheme, url.netloc) == (self.endpoint.scheme, self.endpoint.netloc)

    def party(self, url: httpx.URL) -> str:
        """Who answers at `url`: its host alone, since the query of a storage URL is a secret."""
        name = url.netloc.decode("ascii")
        return self.host if self.is_registry(url) else f"{name} (to which {self.host} refers)"

    def protocol_error(self, message: str, status: int | None = None) -> RegistryProtocolError:
        """The error for an answer that makes no sense."""
        return RegistryProtocolError(f"{self}: {message}", host=self.host, status=status)

    def unauthorized(self, status: int | None, *, anonymous: bool) -> RegistryUnauthorized:
        """The error for credentials that are missing or wrong."""
        advice = (
            f"there are no credentials for it in {self.credentials_path}, and it may be private or absent"
            if anonymous
            else f"check the credentials for {self.host} in {self.credentials_path}"
        )
        return RegistryUnauthorized(
            f"{self}: {self.host} gives no access; {advice}", host=self.host, status=status
        )


@contextmanager
def network_errors(subject: Subject, url: httpx.URL) -> Iterator[None]:
    """Turn what httpx raises into RegistryUnreachable or RegistryProtocolError."""
    try:
        yield
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.DecodingError) as error:
        raise subject.protocol_error(f"cannot talk to {subject.party(url)}: {error}") from error
    except httpx.RequestError as error:
        if certificate := _certificate_error(error):
            raise CertificateRefused(
                f"{subject}: the certificate of {subject.party(url)} is not trusted "
                f"({certificate.verify_message}); set its ca_file in the configuration",
                host=subject.host,
            ) from error
        raise RegistryUnreachable(
            f"{subject}: no answer from {subject.party(url)} ({_reason(error)}); "
            "is it reachable from this host?",
            host=subject.host,
        ) from error


def raise_status(subject: Subject, response: httpx.Response, *, anonymous: bool) -> NoReturn:
    """Raise the error that an unwanted status stands for."""
    status, url = response.status_code, response.request.url
    party = subject.party(url)
    if status in (401, 403):
        if subject.is_registry(url):
            raise subject.unauthorized(status, anonymous=anonymous)
        raise RegistryUnauthorized(
            f"{subject}: {party} gives no access ({status})", host=subject.host, status=status
        )
    if status == 404:
        raise RegistryNotFound(
            f"{subject}: {party} does not have it; is the name right, or was it deleted?",
            host=subject.host,
            status=status,
        )
    if status == 429 or status >= 500:
        retry_after = parse_retry_after(response.headers.get("retry-after"))
        wait = "" if retry_after is None else f" and asks for a wait of {retry_after:.0f} s"
        cause = "has had too many requests" if status == 429 else "is unavailable"
        raise Busy(
            f"{subject}: {party} {cause} ({status}){wait}",
            host=subject.host,
            status=status,
            retry_after=retry_after,
        )
    raise subject.protocol_error(f"{party} gives an unexpected answer ({status})", status)


async def gather(blocks: AsyncIterator[bytes], subject: Subject, limit: int) -> bytes:
    """The whole of a body; raises RegistryProtocolError if it has more than `limit` bytes."""
    parts: list[bytes] = []
    length = 0
    async for block in blocks:
        length += len(block)
        if length > limit:
            raise subject.protocol_error(f"the answer has more than the {limit} bytes that are allowed")
        parts.append(block)
    return b"".join(parts)


async def discard(response: httpx.Response) -> None:
    """Be done with a response whose body nobody wants, keeping the connection if that is cheap."""
    try:
        if int(response.headers.get("content-length", _DRAIN_LIMIT + 1)) <= _DRAIN_LIMIT:
            await response.aread()
    except (httpx.RequestError, ValueError):
        pass  # The connection is of no further use; the body was not wanted.
    finally:
        await response.aclose()


async def close_body(response: httpx.Response, blocks: AsyncIterator[bytes]) -> None:
    """Close a response whose body may have been read in part, and end its iterator.

    httpx's iterators are generators in generators, of which closing the outermost leaves the others
    to the garbage collector, as trio complains. So they are run to their end: at once where all bytes
    have come, which also keeps the connection; otherwise they fail, as the connection is closed by then.
    """
    length = response.headers.get("content-length")
    if length is None or str(response.num_bytes_downloaded) != length:
        await response.aclose()
    try:
        async for _ in blocks:
            pass
    except (httpx.RequestError, httpx.StreamError):
        pass
    await response.aclose()


def _reason(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.ConnectTimeout):
        return "connecting took too long"
    if isinstance(error, httpx.PoolTimeout):
        return "all connections are in use"
    if isinstance(error, httpx.TimeoutException):
        return "silent for too long"
    return str(error) or type(error).__name__


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None
