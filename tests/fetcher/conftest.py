"""A faulty registry, and clients of it that note how long they would have slept."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio.lowlevel
import httpx
import pytest

from fetcher.credentials import CredentialStore
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from tests.faulty_registry import FaultyRegistry


@dataclass
class Clients:
    """Makes clients; `waits` are the seconds that they would have slept between their tries."""

    docker_config: Path
    waits: list[float] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)

    def __call__(
        self, settings: RegistrySettings | None = None, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> RegistryClient:
        """A client, to be entered."""

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)
            await anyio.lowlevel.checkpoint()

        return RegistryClient(
            settings or RegistrySettings(retry_limit=3),
            CredentialStore(str(self.docker_config)),
            transport=transport,
            on_request=lambda kind: self.requests.update([kind]),
            on_bytes=lambda kind, count: self.received.update({kind: count}),
            sleep=sleep,
        )


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture
def make_client(tmp_path: Path) -> Clients:
    return Clients(tmp_path / "config.json")


def reply(status: int, content: bytes = b"", **headers: str) -> httpx.Response:
    """A response as it comes off a network, its body still to be read; `_` in headers' names is `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, stream=httpx.ByteStream(content))


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
