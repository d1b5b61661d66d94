"""What can go wrong between a registry and a verified file.

    FetchError
    ├── InvalidReference            a reference or digest that cannot be parsed
    ├── RegistryError               the registry's side; .host says which
    │   ├── RegistryUnreachable     no connection, a reset, a timeout
    │   ├── RegistryUnavailable     429 or 5xx after every retry; .status
    │   ├── RegistryUnauthorized    401 or 403: credentials are missing or wrong
    │   ├── RegistryNotFound        404: no such manifest or blob
    │   └── RegistryProtocolError   an answer that breaks the specification
    ├── FormatError                 bytes that are not what the format says
    │   ├── NotEstargz              no eStargz or zstd:chunked footer: an ordinary layer
    │   └── InvalidToc              a table of contents that contradicts itself
    ├── SourceNotFound              no such file, or no such image, tag or platform in an OCI layout
    ├── DestinationUnusable         what is at the place to write to is of another form
    ├── VerificationError           bytes whose digest is not the one promised
    └── StoreError                  the local disk refused; .errno

Foreign exceptions become one of these at one boundary each: httpx in
`fetcher.http`, OSError in `fetcher.plain`.
"""

from __future__ import annotations


class FetchError(Exception):
    """Base of everything that `fetcher` raises."""


class InvalidReference(FetchError):
    """An image reference or a digest that cannot be parsed."""


class RegistryError(FetchError):
    """A registry failed; `host` is the registry, `status` its HTTP status if it gave one."""

    def __init__(self, message: str, *, host: str, status: int | None = None) -> None:
        super().__init__(message)
        self.host = host
        self.status = status


class RegistryUnreachable(RegistryError):
    """No connection could be made or kept."""


class RegistryUnavailable(RegistryError):
    """The registry answered 429 or 5xx, and did so after every retry."""


class RegistryUnauthorized(RegistryError):
    """The registry answered 401 or 403 to the credentials we have."""


class RegistryNotFound(RegistryError):
    """The registry has no such manifest or blob."""


class RegistryProtocolError(RegistryError):
    """The registry's answer breaks the distribution specification or RFC 9110."""


class FormatError(FetchError):
    """Bytes that do not follow the format they should have."""


class NotEstargz(FormatError):
    """A blob without the footer of eStargz or zstd:chunked: an ordinary layer."""


class InvalidToc(FormatError):
    """A table of contents that is malformed or contradicts itself."""


class SourceNotFound(FetchError):
    """A local source is not there: a file, a layout, or an image of that tag or platform in it."""


class DestinationUnusable(FetchError):
    """The place that an image is to be written to holds something of another form."""


class VerificationError(FetchError):
    """Bytes whose digest differs from the one that was promised."""


class StoreError(FetchError):
    """The local file system refused; `errno` is the system's number."""

    def __init__(self, message: str, *, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


def first_cause(error: Exception) -> Exception:
    """What was raised first in a task group; any other error is its own cause."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
