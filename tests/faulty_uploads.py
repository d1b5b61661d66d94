"""The half of `tests.faulty_registry` that takes pushes: uploads by chunks, mounts, manifests.

Written from the distribution specification. The location of an upload carries a state in its query, as the
reference implementation's does, which each answer changes: whoever keeps to an old one is refused.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qs

from tests.registry_faults import Interrupt, Kind, Silence, Status

if TYPE_CHECKING:
    from tests.faulty_registry import FaultyRegistry, Handler

_BLOCK = 4096


@dataclass(slots=True)
class Upload:
    """What has come of a blob."""

    repository: str
    data: bytearray = field(default_factory=bytearray)


class Uploads:
    """The uploads that go on, and how they are taken, which tests may change."""

    def __init__(self) -> None:
        self.host: str | None = None
        """HOST:PORT that locations lead to, if not the registry's own."""
        self.least_chunk: int | None = None
        """What is said to be the smallest chunk, in bytes."""
        self.chunks = True
        """Whether PATCH is known at all."""
        self.open: dict[str, Upload] = {}
        self._serial = 0
        self._lock = threading.Lock()

    def begin(self, repository: str) -> str:
        """A new upload's name."""
        with self._lock:
            self._serial += 1
            name = f"upload-{self._serial}"
            self.open[name] = Upload(repository)
            return name


class _Reset(Exception):
    """The connection is to be reset."""


def answer_upload(handler: Handler, registry: FaultyRegistry, url: SplitResult) -> None:
    """Answer a request that pushes."""
    match = re.fullmatch(r"/v2/(.+)/(?:blobs/(uploads)|manifests)/([^/]*)", url.path)
    assert match is not None, f"no request that a registry knows: {handler.command} {url.path}"
    answer = _Answer(handler, registry, match[1], match[3], parse_qs(url.query))
    try:
        answer.upload() if match[2] else answer.manifest()
    except _Reset:
        handler.close_connection = True
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Answer:
    """One request."""

    def __init__(
        self,
        handler: Handler,
        registry: FaultyRegistry,
        repository: str,
        name: str,
        query: dict[str, list[str]],
    ) -> None:
        self._handler = handler
        self._registry = registry
        self._repository = repository
        self._name = name
        self._query = query

    def manifest(self) -> None:
        body = self._body(None)
        if body is None or not self._may():
            return
        media_type = self._handler.headers["content-type"]
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        tag = None if self._name.startswith("sha256:") else self._name
        if tag is None and self._name != digest:
            self._send(400)
            return
        self._registry.add_manifest(self._repository, body, tag=tag, media_type=media_type)
        self._send(201, {"Docker-Content-Digest": digest})

    def upload(self) -> None:
        upload = self._registry.uploads.open.get(self._name)
        body = self._body(upload)
        if body is None or not self._may():
            return
        if self._handler.command == "POST":
            self._begin()
        elif upload is None or upload.repository != self._repository:
            self._send(404)
        elif self._handler.command == "DELETE":
            del self._registry.uploads.open[self._name]
            self._send(204)
        elif self._handler.command == "GET":
            self._send(204, self._progress(upload))
        elif self._query.get("state") != [str(len(upload.data))]:
            self._send(416)
        elif self._handler.command == "PATCH":
            self._patch(upload, body)
        else:
            self._complete(upload, body)

    def _begin(self) -> None:
        if "mount" in self._query:
            (digest,), (source,) = self._query["mount"], self._query["from"]
            data = self._registry.blob(digest, source)
            if data is not None:
                self._registry.add_blob(data, repository=self._repository)
                self._send(201, {"Location": f"/v2/{self._repository}/blobs/{digest}"})
                return
        self._name = self._registry.uploads.begin(self._repository)
        headers = self._progress(self._registry.uploads.open[self._name])
        if self._registry.uploads.least_chunk is not None:
            headers["OCI-Chunk-Min-Length"] = str(self._registry.uploads.least_chunk)
        self._send(202, headers)

    def _patch(self, upload: Upload, body: bytes) -> None:
        start = int(self._handler.headers["content-range"].partition("-")[0])
        if not self._registry.uploads.chunks:
            self._send(405)
        elif start != len(upload.data):
            self._send(416)
        else:
            upload.data += body
            self._send(202, self._progress(upload))

    def _complete(self, upload: Upload, body: bytes) -> None:
        upload.data += body
        (digest,) = self._query["digest"]
        del self._registry.uploads.open[self._name]
        if digest != "sha256:" + hashlib.sha256(upload.data).hexdigest():
            self._send(400)
            return
        self._registry.add_blob(bytes(upload.data), repository=self._repository)
        self._send(201, {"Location": f"/v2/{self._repository}/blobs/{digest}"})

    def _progress(self, upload: Upload) -> dict[str, str]:
        host = self._registry.uploads.host
        path = f"/v2/{self._repository}/blobs/uploads/{self._name}?state={len(upload.data)}"
        return {
            "Location": path if host is None else f"http://{host}{path}",
            "Range": f"0-{max(0, len(upload.data) - 1)}",
        }

    def _may(self) -> bool:
        """Whether the request has the rights it needs; if not, it has been answered."""
        handler = self._handler
        if handler.server.storage or self._registry.is_authorized(
            handler.headers.get("authorization", ""), self._repository, writing=True
        ):
            return True
        challenge = self._registry.challenge(self._repository, writing=True)
        self._send(401, {"WWW-Authenticate": challenge})
        return False

    def _body(self, upload: Upload | None) -> bytes | None:
        """The request's body; None if a fault has dealt with the request."""
        handler = self._handler
        headers = {name.lower(): value for name, value in handler.headers.items()}
        kind: Kind = "upload" if "/uploads/" in handler.path else "manifest"
        fault = self._registry.count(kind, handler.command, handler.path, headers)
        length = int(headers.get("content-length", "0"))
        if isinstance(fault, Interrupt):
            body = self._read(min(length, fault.after))
            if upload is not None:
                if fault.kept is None:
                    del self._registry.uploads.open[self._name]
                elif handler.command == "PATCH":
                    upload.data += body if fault.kept < 0 else body[: fault.kept]
            raise _Reset
        body = self._read(length)
        if isinstance(fault, Silence):
            self._registry.closing.wait()
            raise _Reset
        if isinstance(fault, Status):
            self._send(fault.code, dict(fault.headers))
            return None
        return body

    def _read(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            block = self._handler.rfile.read(min(_BLOCK, length - len(data)))
            if not block:
                raise _Reset
            data += block
        return bytes(data)

    def _send(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._handler.send_answer("upload", status, b"", headers)
