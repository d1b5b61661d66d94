"""`layergate pull` as a user runs it: a process, its output and its exit code."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests import oci
from tests.integration.harness import Containerd, Registry
from tests.integration.processes import python
from tests.snapshotter.lazy_proxy import Announcements, LazyProxy, serving
from tests.snapshotter.pull_images import shell, tar_of, text_layer

pytestmark = pytest.mark.containerd

IMAGE = oci.image([shell(), text_layer("text", "read by a container")], command=["/bin/sh"])

# Of its own blobs, since containerd's namespaces share what one of them has.
STUCK = oci.image([text_layer("text", "never seen")])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(str(tmp_path_factory.mktemp("registry"))) as running:
        oci.push(running.host, "some/image", IMAGE)
        yield running


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = str(tmp_path_factory.mktemp("containerd"))
    with Containerd(directory, snapshotters={"lazy": f"{directory}/lazy.sock"}) as running:
        yield running


def pull(containerd: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--containerd", containerd, "--snapshotter", "overlayfs"]
    return subprocess.run(
        python("snapshotter.entry", "pull", *options, *arguments), capture_output=True, text=True, check=False
    )


def push_index(registry: Registry, tag: str, architecture: str) -> str:
    """Push an index with the image for `architecture`; its reference."""
    url = f"http://{registry.host}/v2/some/image/manifests/{tag}"
    index = oci.index(IMAGE, architecture=architecture)
    httpx.put(url, content=index, headers={"content-type": oci.INDEX}, trust_env=False).raise_for_status()
    return f"{registry.host}/some/image:{tag}"


class StuckRegistry(ThreadingHTTPServer):
    """Has STUCK's documents, and sends half of each layer; `reached` is set when it got there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Stuck)
        self.reached = threading.Event()
        self.closing = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Stuck(BaseHTTPRequestHandler):
    server: StuckRegistry

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        layers = {layer.digest for layer in STUCK.layers}
        content = STUCK.blobs.get(name, STUCK.manifest)
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.send_header("content-type", oci.MANIFEST)
        self.end_headers()
        if name in layers:
            self.wfile.write(content[: len(content) // 2])
            self.server.reached.set()
            self.server.closing.wait()
        else:
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


def test_a_pull_says_what_it_did_and_the_image_runs(containerd: Containerd, registry: Registry) -> None:
    name = f"{registry.host}/some/image:latest"
    done = pull(containerd.address, "--plain-http", name)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{name} {IMAGE.digest} on overlayfs: 2 layers (2 unpacked), ")
    assert "layer 2/2" in done.stderr
    ran = containerd.run(name, ["/bin/sh", "-c", "read line </text; echo $line"])
    assert ran == "read by a container\n"

    again = pull(containerd.address, name)  # plain HTTP is what loopback gets anyway
    assert "2 layers (2 exists), 0.0 MB downloaded" in again.stdout


def test_an_index_is_pulled_for_the_platform_asked_for(containerd: Containerd, registry: Registry) -> None:
    name = push_index(registry, "multi", "s390x")
    done = pull(containerd.address, "--platform", "linux/s390x", name)
    assert done.returncode == 0, done.stderr
    absent = pull(containerd.address, "--platform", "linux/arm/v7", name)
    assert absent.returncode == 3
    assert "linux/s390x" in absent.stderr


@pytest.mark.parametrize("announced", [True, False])
def test_lazy_layers_are_announced_to_a_serve_that_listens(
    containerd: Containerd, registry: Registry, announced: bool
) -> None:
    layer = text_layer("lazy", f"announced: {announced}", lazy=True)
    image = oci.image([layer])
    name = oci.push(registry.host, "lazy/image", image, tag=str(announced))
    address = f"{containerd.directory}/lazy.sock"
    announcements = Announcements()
    proxy = LazyProxy(f"{containerd.directory}/lazy-{announced}", lazy={layer.digest: tar_of(layer)})
    with serving(proxy, address, announcements if announced else None):
        done = pull(containerd.address, "--snapshotter", "lazy", "--address", address, "--plain-http", name)
        assert done.returncode == 0, done.stderr
        assert "1 layer (1 lazy), 0.0 MB downloaded" in done.stdout
        containerd.ctr("images", "remove", "--sync", name)
    if announced:
        (request,) = announcements.images
        assert request.reference == name
        assert "sha256:" + hashlib.sha256(request.manifest).hexdigest() == image.digest
        assert request.plain_http
    else:
        assert announcements.images == []


@pytest.mark.parametrize(("snapshotter", "lazy"), [("lazy", False), ("overlayfs", True)])
def test_an_image_that_cannot_be_lazy_there_is_not_announced(
    containerd: Containerd, registry: Registry, snapshotter: str, lazy: bool
) -> None:
    layer = text_layer("ordinary", f"on {snapshotter}", lazy=lazy)
    name = oci.push(registry.host, "ordinary/image", oci.image([layer]), tag=snapshotter)
    address = f"{containerd.directory}/lazy.sock"
    announcements = Announcements()
    with serving(
        LazyProxy(f"{containerd.directory}/ordinary-{snapshotter}", lazy={}), address, announcements
    ):
        done = pull(
            containerd.address, "--snapshotter", snapshotter, "--address", address, "--plain-http", name
        )
        assert done.returncode == 0, done.stderr
        assert "1 layer (1 unpacked)" in done.stdout
        containerd.ctr("images", "remove", "--sync", name)
    assert announcements.images == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["UPPER/case::"], 2, "is not an image reference"),
        (["--platform", "nonsense", "example.org/a"], 2, "is not a platform"),
        (["--config", "/nonexistent/config.toml", "example.org/a"], 2, "/nonexistent/config.toml"),
        (["--snapshotter", "nix", "example.org/a"], 9, "[proxy_plugins.nix]"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    containerd: Containerd, arguments: list[str], code: int, text: str
) -> None:
    done = pull(containerd.address, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert text in line


def test_an_image_that_is_not_there(containerd: Containerd, registry: Registry) -> None:
    done = pull(containerd.address, f"{registry.host}/some/image:absent")
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert registry.host in line


def test_no_containerd(tmp_path: Path, registry: Registry) -> None:
    done = pull(f"{tmp_path}/none.sock", f"{registry.host}/some/image:latest")
    assert done.returncode == 9
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"layergate: no containerd at {tmp_path}/none.sock")


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_an_interrupted_pull_leaves_nothing(
    containerd: Containerd, number: signal.Signals, code: int, again: bool
) -> None:
    options = ["--containerd", containerd.address, "--snapshotter", "overlayfs", "--namespace", "broken"]
    with StuckRegistry() as registry:
        name = f"127.0.0.1:{registry.server_port}/some/image"
        command = python("snapshotter.entry", "pull", *options, name)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                while not registry.reached.wait(0.1):
                    assert process.poll() is None, process.communicate()
                process.send_signal(number)
                while again and process.poll() is None:
                    time.sleep(0.01)
                    process.send_signal(number)
                _, stderr = process.communicate()
            finally:
                process.kill()
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("layergate: ")
    for kind in ("leases", "snapshots", "images"):
        assert containerd.ctr("--namespace", "broken", kind, "list").splitlines()[1:] == []
