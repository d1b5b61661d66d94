from __future__ import annotations

import pytest

from fetcher.errors import (
    InvalidReference,
)
from fetcher.settings import RegistryHost, RegistrySettings, is_loopback
from tests.fetcher.conftest import Clients

pytestmark = pytest.mark.anyio


class TestSettings:
    @pytest.mark.parametrize(
        ("host", "loopback"),
        [
            ("localhost", True),
            ("localhost:5000", True),
            ("127.0.0.1:5000", True),
            ("127.1.2.3", True),
            ("[::1]:5000", True),
            ("[::1]", True),
            ("localhost.example.io", False),
            ("10.0.0.1:5000", False),
            ("[fe80::1]", False),
            ("127.0.0.1.io", False),
        ],
    )
    def test_loopback_is_plain_http_by_default(self, host: str, loopback: bool) -> None:
        assert is_loopback(host) is loopback
        assert RegistrySettings().endpoint(host) == f"{'http' if loopback else 'https'}://{host}"

    def test_plain_http_can_be_set_either_way(self) -> None:
        settings = RegistrySettings(
            hosts={"localhost:1": RegistryHost(plain_http=False), "a.io": RegistryHost(plain_http=True)}
        )
        assert settings.endpoint("localhost:1") == "https://localhost:1"
        assert settings.endpoint("a.io") == "http://a.io"

    async def test_an_impossible_host_is_refused(self, make_client: Clients) -> None:
        with pytest.raises(InvalidReference, match="not a host"):
            make_client(RegistrySettings(hosts={"a.io:port": RegistryHost()}))
