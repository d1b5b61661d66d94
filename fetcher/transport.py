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

import httpx

from fetcher.reference import DOCKER_IO
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
    """Sends each request through the pool that its host's settings ask for."""

    def __init__(self, settings: RegistrySettings, *, receive_buffer: int | None = None) -> None:
        self._settings = settings
        self._hosts = {
            "registry-1.docker.io" if name == DOCKER_IO else name: host for name, host in settings.hosts.items()
        }
        self._socket_options = (
            None if receive_buffer is None else [(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)]
        )
        self._pools: dict[_Way, httpx.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        way = self._way(request.url)
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
        host = self._hosts.get(name, _DEFAULT)
        proxy = None
        if not is_loopback(name) and not urllib.request.proxy_bypass(name):
            proxy = urllib.request.getproxies().get(url.scheme)
        if url.scheme == "http":
            return _Way(False, None, False, proxy)
        return _Way(True, host.ca_file, host.skip_verify, proxy)

    def _pool(self, way: _Way) -> httpx.AsyncHTTPTransport:
        limit = self._settings.connection_limit
        return httpx.AsyncHTTPTransport(
            verify=_tls_context(way),
            trust_env=False,
            proxy=way.proxy,
            limits=httpx.Limits(
                max_connections=limit, max_keepalive_connections=limit, keepalive_expiry=_KEEPALIVE_SECONDS
            ),
            socket_options=self._socket_options,
        )


_DEFAULT = RegistryHost()


def _tls_context(way: _Way) -> ssl.SSLContext:
    if not way.tls and way.proxy is None:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Never used; loading the system's CAs takes 20 ms.
    context = ssl.create_default_context()
    if way.ca_file is not None:
        context.load_verify_locations(way.ca_file)
    if way.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
