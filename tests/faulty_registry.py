"""A registry in this process, over real HTTP on loopback, that fails on demand.

    with FaultyRegistry() as registry:
        reference = registry.add_image("team/app", image)
        registry.fail("blob", Status(503), times=2)
        ...
        assert registry.requests["blob"] == 3

Other processes reach it as `registry.host`. Rules are tried in the order in
which they were given; the first one that fits a request and is not used up
takes it. Kinds of requests: manifest, blob, token, and storage (the second
port, to which `redirect_blobs` sends those who ask for blobs), and upload: what tests.faulty_uploads answers.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.faulty_uploads import Uploads, answer_upload
from tests.oci import MANIFEST, Image
from tests.registry_faults import (
    BasicLogin,
    BearerLogin,
    Drop,
    Fault,
    IgnoreRange,
    Kind,
    RefuseSuffix,
    ShiftRange,
    ShortRange,
    Silence,
    Status,
    Throttle,
    Truncate,
    WrongBytes,
)

_BLOCK: Final = 64 << 10


@dataclass(slots=True)
class _Rule:
    kind: Kind
    fault: Fault
    left: int | None
    path: str


class FaultyRegistry:
    """Serves what it was given; a context manager, stopped with all its connections at the end."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        """Bytes of bodies, by kind of request."""
        self.connections = 0
        self.log: list[tuple[str, str, str, dict[str, str]]] = []
        """Kind, method, path with query, and headers (names in lower case) of every request."""
        self.login: BasicLogin | BearerLogin | None = None
        self.closing = threading.Event()
        self.healed = threading.Event()
        self.uploads = Uploads()
        self._blobs: dict[str, bytes] = {}
        self._only_in: dict[str, set[str]] = {}
        self._manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[float, str]] = {}
        self._signature: str | None = None
        self._serial = 0
        self._registry = _Server(self, storage=False)
        self._storage = _Server(self, storage=True)

    @property
    def host(self) -> str:
        """HOST:PORT of the registry."""
        return f"127.0.0.1:{self._registry.server_port}"

    @property
    def storage_host(self) -> str:
        """HOST:PORT of the storage that `redirect_blobs` sends to."""
        return f"127.0.0.1:{self._storage.server_port}"

    def __enter__(self) -> Self:
        for server in (self._registry, self._storage):
            server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server in (self._registry, self._storage):
            server.stop()

    def add_blob(self, data: bytes, *, repository: str | None = None) -> str:
        """Serve a blob, in every repository unless one is named; its digest."""
        name = _digest(data)
        if repository is None:
            self._only_in.pop(name, None)
        elif name not in self._blobs or name in self._only_in:
            self._only_in.setdefault(name, set()).add(repository)
        self._blobs[name] = data
        return name

    def add_manifest(
        self, repository: str, data: bytes, *, tag: str | None = None, media_type: str = MANIFEST
    ) -> str:
        """Serve a manifest or an index by its digest, and by `tag`; its digest."""
        name = _digest(data)
        for target in filter(None, (name, tag)):
            self._manifests[repository, target] = (media_type, data)
        return name

    def add_image(self, repository: str, image: Image, *, tag: str = "latest") -> str:
        """Serve an image whole; the reference to pull."""
        for data in image.blobs.values():
            self.add_blob(data)
        self.add_manifest(repository, image.manifest, tag=tag)
        return f"{self.host}/{repository}:{tag}"

    def remove_blob(self, digest: str) -> None:
        """Serve it no longer."""
        del self._blobs[digest]

    def fail(self, kind: Kind, fault: Fault, *, times: int | None = None, path: str = "") -> None:
        """Let the next `times` requests of a kind fail (None: all), or those alone whose path has `path`."""
        with self._lock:
            self._rules.append(_Rule(kind, fault, times, path))

    def heal(self) -> None:
        """Forget all rules; who waits for an answer loses the connection."""
        with self._lock:
            self._rules.clear()
            self.healed.set()
            self.healed = threading.Event()

    def down(self) -> None:
        """Be gone, with all connections: new ones are refused until `up`."""
        self.heal()
        for server in (self._registry, self._storage):
            server.stop()

    def up(self) -> None:
        """Be there again, under the same addresses."""
        self._registry = _Server(self, storage=False, port=self._registry.server_port)
        self._storage = _Server(self, storage=True, port=self._storage.server_port)
        for server in (self._registry, self._storage):
            server.start()

    def require(self, login: BasicLogin | BearerLogin | None) -> None:
        """Ask for authentication from now on."""
        self.login = login

    def expire_tokens(self) -> None:
        """Refuse every token that was given so far."""
        with self._lock:
            self._tokens.clear()

    def redirect_blobs(self) -> None:
        """Answer requests for blobs with redirects to signed URLs on another port."""
        self._sign_anew()

    def expire_signatures(self) -> None:
        """Refuse every URL that was signed so far."""
        self._sign_anew()

    def _sign_anew(self) -> None:
        with self._lock:
            self._serial += 1
            self._signature = f"signature-{self._serial}"

    def signed_location(self, path: str) -> str | None:
        """Where to send a request for a blob; None if the registry serves it itself."""
        with self._lock:
            if self._signature is None:
                return None
            return f"http://{self.storage_host}{path}?{urlencode({'signature': self._signature})}"

    def is_signed(self, query: str) -> bool:
        """Whether a URL's signature is the one that is in force."""
        with self._lock:
            return parse_qs(query).get("signature") == [self._signature]

    def blob(self, digest: str, repository: str | None = None) -> bytes | None:
        """A blob by digest, if it is in the repository."""
        only_in = self._only_in.get(digest)
        if repository is not None and only_in is not None and repository not in only_in:
            return None
        return self._blobs.get(digest)

    def manifest(self, repository: str, target: str) -> tuple[str, bytes] | None:
        """Media type and bytes of a manifest."""
        return self._manifests.get((repository, target))

    def count(self, kind: Kind, method: str, path: str, headers: dict[str, str]) -> Fault | None:
        """Note a request; the fault that it is to meet."""
        with self._lock:
            self.requests[kind] += 1
            self.log.append((kind, method, path, headers))
            for rule in self._rules:
                if rule.kind != kind or rule.path not in path or rule.left == 0:
                    continue
                if isinstance(rule.fault, RefuseSuffix) and not headers.get("range", "").startswith(
                    "bytes=-"
                ):
                    continue
                if rule.left is not None:
                    rule.left -= 1
                return rule.fault
        return None

    def add_sent(self, kind: Kind, count: int) -> None:
        """Note bytes of a body that were sent."""
        with self._lock:
            self.sent[kind] += count

    def add_connection(self) -> None:
        """Note a connection that was made."""
        with self._lock:
            self.connections += 1

    def issue_token(self, expires_in: int, scope: str) -> str:
        """A token for what was asked for, valid for so many seconds."""
        with self._lock:
            self._serial += 1
            token = f"token-{self._serial}"
            self._tokens[token] = (time.monotonic() + expires_in, scope)
            return token

    def is_authorized(self, header: str, repository: str, *, writing: bool = False) -> bool:
        """Whether an Authorization header allows to read a repository, or to write to it."""
        login = self.login
        if login is None:
            return True
        scheme, _, value = header.partition(" ")
        if isinstance(login, BasicLogin):
            return scheme == "Basic" and value == _basic(login.username, login.password)
        with self._lock:
            until, scope = self._tokens.get(value, (0.0, ""))
        wanted = f"repository:{repository}:pull{',push' if writing else ''}"
        return scheme == "Bearer" and until > time.monotonic() and wanted in scope

    def challenge(self, repository: str, *, writing: bool = False) -> str:
        """The WWW-Authenticate header of a 401."""
        if isinstance(self.login, BasicLogin):
            return 'Basic realm="registry"'
        scope = f"repository:{repository}:pull{',push' if writing else ''}"
        return f'Bearer realm="http://{self.host}/token",service="faulty, registry",scope="{scope}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, registry: FaultyRegistry, *, storage: bool, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.registry = registry
        self.storage = storage
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        self._sockets.add(connection)
        self.registry.add_connection()
        return connection, address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self._sockets.discard(cast(socket.socket, request))
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this is for; nothing to print."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed; requests are in `FaultyRegistry.log`."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        registry = self.server.registry
        url = urlsplit(self.path)
        if "/blobs/uploads/" in url.path or self.command == "PUT":
            answer_upload(self, registry, url)
            return
        length = int(self.headers.get("content-length", "0"))
        form = self.rfile.read(length).decode()
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", url.path)
        kind: Kind = "blob"
        if url.path == "/token":
            kind = "token"
        elif self.server.storage:
            kind = "storage"
        elif match and match[2] == "manifests":
            kind = "manifest"
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = registry.count(kind, self.command, self.path, headers)
        if isinstance(fault, Silence):
            healed = registry.healed
            while not registry.closing.is_set() and not healed.wait(0.05):
                pass
            self.close_connection = True
        elif isinstance(fault, Status | RefuseSuffix):
            extra = fault.headers if isinstance(fault, Status) else ()
            self.send_answer(kind, fault.code, b"no", dict(extra))
        elif kind == "token":
            self._token(parse_qs(form), parse_qs(url.query))
        elif match is None:
            self.send_answer(kind, 404, b"")
        elif kind == "storage":
            if registry.is_signed(url.query):
                self._blob(kind, match[1], match[3], fault)
            else:
                self.send_answer(kind, 403, b"<Error>the signature has expired</Error>")
        elif not registry.is_authorized(self.headers.get("authorization", ""), match[1]):
            self.send_answer(kind, 401, b"{}", {"WWW-Authenticate": registry.challenge(match[1])})
        elif kind == "manifest":
            self._manifest(match[1], match[3], fault)
        else:
            self._blob_or_redirect(url.path, match[1], match[3], fault)

    def _token(self, form: dict[str, list[str]], query: dict[str, list[str]]) -> None:
        registry = self.server.registry
        login = registry.login
        if not isinstance(login, BearerLogin):
            self.send_answer("token", 404, b"")
            return
        if self.command == "POST":
            valid = form.get("refresh_token") == [login.identity_token] and login.identity_token != ""
            key = "access_token"
        else:
            expected = f"Basic {_basic(login.username, login.password)}"
            valid = not login.username or self.headers.get("authorization") == expected
            key = "token"
        if not valid:
            self.send_answer("token", 401, b"{}")
            return
        scope = " ".join((form if self.command == "POST" else query).get("scope", []))
        answer = {key: registry.issue_token(login.expires_in, scope), "expires_in": login.expires_in}
        self.send_answer("token", 200, json.dumps(answer).encode())

    def _manifest(self, repository: str, target: str, fault: Fault | None) -> None:
        found = self.server.registry.manifest(repository, target)
        if found is None:
            self.send_answer("manifest", 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
            return
        media_type, data = found
        headers = {"Content-Type": media_type, "Docker-Content-Digest": _digest(data)}
        self.send_answer("manifest", 200, data, headers, fault)

    def _blob_or_redirect(self, path: str, repository: str, digest: str, fault: Fault | None) -> None:
        location = self.server.registry.signed_location(path)
        if location is not None and fault is None:
            self.send_answer("blob", 307, b"elsewhere", {"Location": location})
        else:
            self._blob("blob", repository, digest, fault)

    def _blob(self, kind: Kind, repository: str, digest: str, fault: Fault | None) -> None:
        data = self.server.registry.blob(digest, repository)
        if data is None:
            self.send_answer(kind, 404, b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
            return
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", ""))
        if asked is None or isinstance(fault, IgnoreRange):
            self.send_answer(kind, 200, data, {}, fault)
            return
        if asked[1]:
            start, end = int(asked[1]), min(len(data), int(asked[2]) + 1 if asked[2] else len(data))
        else:
            start, end = max(0, len(data) - int(asked[2])), len(data)
        if start >= end:
            self.send_answer(kind, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if isinstance(fault, ShortRange) and asked[1]:
            end = min(end, start + fault.limit)
        elif isinstance(fault, ShortRange):
            start = max(start, end - fault.limit)
        if isinstance(fault, ShiftRange):
            start, end = start + fault.by, min(len(data), end + fault.by)
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self.send_answer(kind, 206, data[start:end], headers, fault)

    def send_answer(
        self,
        kind: Kind,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        fault: Fault | None = None,
    ) -> None:
        """Answer with a status, a body and what else there is to say."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, WrongBytes):
            data = bytes(255 - byte for byte in data)
        stop = min(len(data), fault.after) if isinstance(fault, Drop | Truncate) else len(data)
        started = time.monotonic()
        for position in range(0, stop, _BLOCK):
            block = data[position : min(stop, position + _BLOCK)]
            if isinstance(fault, Throttle):
                due = started + (position + len(block)) / fault.bytes_per_second
                if self.server.registry.closing.wait(max(0.0, due - time.monotonic())):
                    break
            self.server.registry.add_sent(
                kind, len(block)
            )  # first, as the client may be done before we go on
            self.wfile.write(block)
        if isinstance(fault, Drop | Truncate):
            self.close_connection = True
            if isinstance(fault, Drop):
                # What was sent must arrive: a reset throws away what the client's kernel has not yet taken.
                time.sleep(0.05)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _basic(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()
