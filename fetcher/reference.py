"""Image references and digests. Pure; no I/O.

The grammar and the normalisation are those of the distribution project
(`reference.ParseDockerRef`): a name without a host is one of docker.io, a
docker.io name without a slash is in library/, and a name with neither tag nor
digest has the tag "latest".
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Final

from fetcher.errors import InvalidReference

DOCKER_IO: Final = "docker.io"

_NAME_LIMIT: Final = 255
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry. `host` is HOST or HOST:PORT; at least one of tag and digest is there."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        """Host and repository, without tag and digest."""
        return f"{self.host}/{self.repository}"

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, if there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def with_digest(self, digest: str) -> Reference:
        """The same image, pinned; raises InvalidReference."""
        return dataclasses.replace(self, digest=parse_digest(digest))

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{self.host}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Parse and normalise; raises InvalidReference."""
    rest, at, digest = text.partition("@")
    first, slash, path = rest.partition("/")
    if not slash or not _is_host(first):
        host, path = DOCKER_IO, rest
    else:
        host = DOCKER_IO if first == "index.docker.io" else first
    repository, colon, tag = path.partition(":")
    if host == DOCKER_IO and "/" not in repository:
        repository = f"library/{repository}"
    if not _HOST.fullmatch(host) or int("0" + host.rpartition("]")[2].partition(":")[2]) > 0xFFFF:
        raise InvalidReference(f"{text!r} is not an image reference: {host!r} is not a host")
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidReference(
            f"{text!r} is not an image reference: {path.partition(':')[0]!r} is not a repository name"
        )
    if _HEX.fullmatch(text):
        raise InvalidReference(f"{text!r} is not an image reference: 64 hexadecimal digits look like an ID")
    if len(host) + 1 + len(repository) > _NAME_LIMIT:
        raise InvalidReference(f"an image reference has a name of more than {_NAME_LIMIT} characters")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidReference(f"{text!r} is not an image reference: {tag!r} is not a tag")
    if not colon and not at:
        tag = "latest"
    return Reference(host, repository, tag or None, parse_digest(digest) if at else None)


def parse_digest(text: str) -> str:
    """The digest itself, if it is `sha256:` and 64 lower-case hexadecimal digits; else InvalidReference."""
    if not _DIGEST.fullmatch(text):
        raise InvalidReference(f"{text!r} is not a digest: expected sha256: and 64 hexadecimal digits")
    return text


def short_digest(digest: str) -> str:
    """A digest as people read it in messages: the first 12 of its digits."""
    return digest[: len("sha256:") + 12]


def _is_host(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost" or component != component.lower()
