from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.credentials import CredentialStore
from fetcher.errors import (
    RegistryError,
    RegistryUnreachable,
)
from fetcher.reference import Reference, parse_reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistryHost, RegistrySettings
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients, digest_of

pytestmark = pytest.mark.anyio


def reference_to(registry: FaultyRegistry) -> Reference:
    return parse_reference(f"{registry.host}/team/app")


class TestConnections:
    async def test_the_receive_buffer_is_set(self, registry: FaultyRegistry, tmp_path: Path) -> None:
        digest = registry.add_blob(b"content")
        store = CredentialStore(str(tmp_path / "none"))
        async with RegistryClient(RegistrySettings(), store, receive_buffer=50_000) as client:
            await client.blob_bytes(reference_to(registry), digest, limit=100)
            assert receive_buffers(registry.host) == [100_000]  # socket(7): the kernel doubles it


class TestProxies:
    async def fetch(self, make_client: Clients, host: str) -> bytes:
        settings = RegistrySettings(hosts={host: RegistryHost(plain_http=True)}, retry_limit=0)
        async with make_client(settings) as client:
            return await client.blob_bytes(parse_reference(f"{host}/app"), digest_of(b"content"), limit=100)

    @pytest.mark.parametrize("scheme", ["http://", ""])
    async def test_the_environments_proxy_is_used(
        self, registry: FaultyRegistry, make_client: Clients, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        monkeypatch.setenv("http_proxy", f"{scheme}{registry.host}")
        monkeypatch.setenv("no_proxy", "direct.invalid")
        registry.add_blob(b"content")
        assert await self.fetch(make_client, "proxied.invalid") == b"content"
        assert registry.log[0][2].startswith("http://proxied.invalid/v2/app/")
        with pytest.raises(RegistryUnreachable):
            await self.fetch(make_client, "direct.invalid")
        assert registry.requests["blob"] == 1

    async def test_loopback_is_never_asked_of_a_proxy(
        self, registry: FaultyRegistry, make_client: Clients, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "http://proxy.invalid")
        monkeypatch.setenv("no_proxy", "")
        registry.add_blob(b"content")
        assert await self.fetch(make_client, registry.host) == b"content"

    async def test_a_proxy_that_cannot_be_used_is_said_without_its_password(
        self, make_client: Clients, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", "gopher://user:secret@proxy.invalid")
        with pytest.raises(RegistryUnreachable, match="proxy") as caught:
            await self.fetch(make_client, "proxied.invalid")
        assert "secret" not in str(caught.value)


SERVER = """
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"content")
    def log_message(self, *args):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def tls_server(directory: Path) -> Iterator[tuple[str, Path]]:
    """Its HOST:PORT and its certificate, which nobody has signed. In a process, for it may be hung up on."""
    pem = directory / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(pem), "-out", str(directory / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    with pem.open("ab") as file:
        file.write((directory / "cert.pem").read_bytes())
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(pem)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        try:
            assert server.stdout is not None
            yield f"localhost:{int(server.stdout.readline())}", directory / "cert.pem"
        finally:
            server.kill()


class TestTls:
    async def fetch(self, make_client: Clients, host: str, settings: RegistryHost) -> bytes:
        async with make_client(RegistrySettings(hosts={host: settings}, retry_limit=3)) as client:
            return await client.blob_bytes(parse_reference(f"{host}/app"), digest_of(b"content"), limit=100)

    async def test_certificates_are_verified_as_set(self, make_client: Clients, tmp_path: Path) -> None:
        with tls_server(tmp_path) as (host, certificate):
            with pytest.raises(RegistryUnreachable, match="not trusted"):
                await self.fetch(make_client, host, RegistryHost(plain_http=False))
            assert make_client.waits == []
            trusting = RegistryHost(plain_http=False, ca_file=str(certificate))
            assert await self.fetch(make_client, host, trusting) == b"content"
            careless = RegistryHost(plain_http=False, skip_verify=True)
            assert await self.fetch(make_client, host, careless) == b"content"

    async def test_a_ca_file_that_cannot_be_loaded_is_named(
        self, make_client: Clients, tmp_path: Path
    ) -> None:
        for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
            (tmp_path / "empty.pem").write_text("")
            with pytest.raises(RegistryError, match=path.name):
                await self.fetch(
                    make_client, "localhost:1", RegistryHost(plain_http=False, ca_file=str(path))
                )


def receive_buffers(host: str) -> list[int]:
    """SO_RCVBUF of this process's connections to `host`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is gone by now, and some sockets are not connected.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(f"/proc/self/fd/{name}").st_mode):
                with socket.socket(fileno=os.dup(int(name))) as connection:
                    peer = connection.getpeername()
                    if connection.family == socket.AF_INET and f"{peer[0]}:{peer[1]}" == host:
                        found.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
    return found
