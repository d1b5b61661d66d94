"""What `tests.faulty_registry` can be told to do to a request, and how it may ask for a login."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Literal

Kind = Literal["manifest", "blob", "token", "storage", "upload"]


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with this status, and nothing of what was asked for."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Send the whole with 200."""


@dataclass(frozen=True, slots=True)
class RefuseSuffix:
    """Answer `bytes=-N`, and only that, with this status."""

    code: int = 416


@dataclass(frozen=True, slots=True)
class Drop:
    """Reset the connection after `after` bytes of the body."""

    after: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Close the connection after `after` bytes of the body, as if that were all."""

    after: int


@dataclass(frozen=True, slots=True)
class ShiftRange:
    """Send another range than the one asked for, `by` bytes further on, and say so."""

    by: int = 1


@dataclass(frozen=True, slots=True)
class ShortRange:
    """Send a valid 206 with no more than `limit` bytes of the range asked for; of a suffix, the last."""

    limit: int


@dataclass(frozen=True, slots=True)
class WrongBytes:
    """Flip every bit of the body."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Send no more than this many bytes a second."""

    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Reset the connection after `after` bytes of a request's body, of which `kept` stay with the upload.

    `kept` -1 means all of them, None that the upload is forgotten.
    """

    after: int
    kept: int | None = -1


@dataclass(frozen=True, slots=True)
class Silence:
    """Take the request and never answer."""


Fault = (
    Status
    | IgnoreRange
    | RefuseSuffix
    | Drop
    | Truncate
    | ShiftRange
    | ShortRange
    | WrongBytes
    | Throttle
    | Interrupt
    | Silence
)


@dataclass(frozen=True, slots=True)
class BasicLogin:
    """Every request needs these credentials."""

    username: str
    password: str


@dataclass(frozen=True, slots=True)
class BearerLogin:
    """Every request needs a token, which the token endpoint gives for these credentials.

    Without a user name it gives tokens to anybody; `identity_token` is what the OAuth2 POST asks for.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    expires_in: int = 300


def docker_config(host: str, login: BasicLogin | BearerLogin) -> str:
    """A docker config.json with the credentials of one registry."""
    auth = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
    return json.dumps({"auths": {host: {"auth": auth}}})
