"""A faulty registry, and clients of it that note how long they would have slept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
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
            await anyio.sleep(0)

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


Handler = Callable[[httpx.Request], httpx.Response]
