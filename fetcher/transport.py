"""Connections: one pool for each way of connecting, chosen by the host's settings.

httpx's own choice of a pool knows neither a CA file per host nor a socket
buffer beside a proxy; both are needed here. Proxies come from the environment
(HTTPS_PROXY, HTTP_PROXY, NO_PROXY), and loopback is never asked of a proxy.
"""

from __future__ import annotations

import logging
import socket
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Final

import httpcore  # noqa: F401 - httpx loads it at the first transport, in the middle of the first request
import httpx

from fetcher.errors import InvalidReference
from fetcher.settings import RegistryHost, RegistrySettings, is_loopback

_KEEPALIVE_SECONDS: Final = 45.0
"""Below the idle limit of common load balancers (60 s), so that we are the ones who hang up."""

for _name in ("httpx", "httpcore"):
    # They log every URL, and the query of a storage URL is a secret.
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class _Way:
    """Everything that makes two connections differ, apart from where they go."""

    tls: bool
    ca_file: str | None
    skip_verify: bool
    proxy: str | None


class RegistryTransport(httpx.AsyncBaseTransport):
    """Sends each request through the pool that its host's settings ask for.

    Raises InvalidReference if the settings name a host that cannot be one.
    """

    def __init__(self, settings: RegistrySettings, *, receive_buffer: int | None = None) -> None:
        self._settings = settings
        self._hosts = {_netloc(settings, name): host for name, host in settings.hosts.items()}
        self._socket_options = (
            None if receive_buffer is None else [(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)]
        )
        self._proxies = urllib.request.getproxies()
        self._ways: dict[tuple[str, bytes], _Way] = {}
        self._pools: dict[_Way, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; raises httpx's own errors."""
        place = (request.url.scheme, request.url.netloc)
        way = self._ways.get(place)
        if way is None:
            way = self._ways[place] = self._way(request.url)
        pool = self._pools.get(way)
        if pool is None:
            pool = self._pools[way] = self._pool(way)
        return await pool.handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()

    def _way(self, url: httpx.URL) -> _Way:
        name = url.netloc.decode("ascii")
        proxy = None
        if not is_loopback(name) and not urllib.request.proxy_bypass(name):
            proxy = self._proxies.get(url.scheme)
            if proxy and "://" not in proxy:
                proxy = f"http://{proxy}"
        if url.scheme == "http":
            return _Way(False, None, False, proxy)
        host = self._hosts.get(url.netloc, _DEFAULT)
        return _Way(True, host.ca_file, host.skip_verify, proxy)

    def _pool(self, way: _Way) -> httpx.AsyncHTTPTransport:
        limit = self._settings.connection_limit
        context = _tls_context(way)
        try:
            return httpx.AsyncHTTPTransport(
                verify=context,
                trust_env=False,
                proxy=way.proxy,
                limits=httpx.Limits(
                    max_connections=limit,
                    max_keepalive_connections=limit,
                    keepalive_expiry=_KEEPALIVE_SECONDS,
                ),
                socket_options=self._socket_options,
            )
        except (ValueError, ImportError):
            # Not chained: the proxy's URL may hold a password.
            raise httpx.ProxyError("the proxy that the environment names cannot be used") from None


_DEFAULT = RegistryHost()


def _netloc(settings: RegistrySettings, name: str) -> bytes:
    try:
        return httpx.URL(settings.endpoint(name)).netloc
    except httpx.InvalidURL as error:
        raise InvalidReference(f"the settings name a registry {name!r}, which is not a host") from error


def _tls_context(way: _Way) -> ssl.SSLContext:
    if not way.tls and way.proxy is None:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Never used; loading the system's CAs takes 20 ms.
    context = ssl.create_default_context()
    if way.ca_file is not None:
        try:
            context.load_verify_locations(way.ca_file)
        except OSError as error:  # ssl.SSLError, of a file that is no PEM, is one too.
            raise httpx.ConnectError(f"cannot load ca_file {way.ca_file}: {error.strerror}") from error
    if way.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
