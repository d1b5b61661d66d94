"""A registry at the far end of a link."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from scripts.benchmark.link import FAR_ADDRESS, Link
from tests.integration.harness import call
from tests.integration.processes import Daemon

_PORT: Final = 5000
_CONFIG: Final = """\
version: 0.1
log: {{level: debug, accesslog: {{disabled: true}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {data}}}
http: {{addr: "0.0.0.0:{port}"}}
"""
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PushedImage:
    """An image in the registry."""

    reference: str
    layers: tuple[str, ...]
    """Digests, the lowest first."""
    size: int
    """Of all layers, in bytes."""
    largest_url: str

    @property
    def repository(self) -> str:
        """The reference without host and tag."""
        return self.reference.partition("/")[2].rpartition(":")[0]


@dataclass(frozen=True, slots=True)
class Request:
    """One that the registry was asked."""

    at: float
    """Seconds since 1970."""
    what: str
    """As "METHOD /path"."""


class FarRegistry:
    """Debian's docker-registry, behind `link`; a context manager. What `directory` has already is in it."""

    host: Final = f"{FAR_ADDRESS}:{_PORT}"

    def __init__(self, link: Link, directory: str) -> None:
        self._link = link
        self._data = os.path.join(directory, "data")
        os.makedirs(self._data, exist_ok=True)
        config = os.path.join(directory, "config.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(data=self._data, port=_PORT))
        self._log = os.path.join(directory, "registry.log")
        self._daemon = Daemon(link.beyond(["docker-registry", "serve", config]), log=self._log)

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        try:
            self._daemon.wait_until(lambda: "listening on" in self._daemon.log_end())
        except BaseException:
            self._daemon.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._daemon.__exit__()

    def push(self, layout: str, repository: str, tag: str) -> PushedImage:
        """Push the one image of the OCI layout in the directory `layout`, without crossing the link."""
        reference = f"{self.host}/{repository}:{tag}"
        command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        call(self._link.beyond([*command, f"oci:{layout}", f"docker://{reference}"]), timeout=900)
        manifest = json.loads(_blob(layout, _read_json(f"{layout}/index.json")["manifests"][0]["digest"]))
        layers = manifest["layers"]
        largest = max(layers, key=lambda layer: int(layer["size"]))
        return PushedImage(
            reference=reference,
            layers=tuple(layer["digest"] for layer in layers),
            size=sum(layer["size"] for layer in layers),
            largest_url=f"http://{self.host}/v2/{repository}/blobs/{largest['digest']}",
        )

    def warm_up(self) -> None:
        """Read all that is stored into the page cache: the link is to be what limits, not the disk."""
        for directory, _, names in os.walk(self._data):
            for name in names:
                with open(os.path.join(directory, name), "rb", buffering=0) as file:
                    while file.read(_BLOCK):
                        pass

    @property
    def log_size(self) -> int:
        """Bytes of the log so far, to give to `requests`."""
        return os.path.getsize(self._log)

    def requests(self, since: int, until: int) -> list[Request]:
        """The requests that came in while the log grew from one size to the other."""
        with open(self._log, "rb") as file:
            file.seek(since)
            text = file.read(until - since).decode(errors="replace")
        # This is logged once a request, when it comes in.
        return [_request(line) for line in text.splitlines() if 'msg="authorizing request"' in line]


def _request(line: str) -> Request:
    at = re.search(r'time="([^"]+)"', line)
    method = re.search(r"http\.request\.method=(\S+)", line)
    uri = re.search(r'http\.request\.uri="?([^" ]+)', line)
    assert at is not None, line
    assert method is not None, line
    assert uri is not None, line
    return Request(datetime.fromisoformat(at[1]).timestamp(), f"{method[1]} {uri[1]}")


def _blob(layout: str, digest: str) -> bytes:
    with open(os.path.join(layout, "blobs", *digest.split(":")), "rb") as file:
        return file.read()


def _read_json(path: str) -> dict[str, list[dict[str, str]]]:
    with open(path, encoding="utf-8") as file:
        value: dict[str, list[dict[str, str]]] = json.load(file)
    return value
