"""What is wrong at the command line or in the configuration: one clear line, and an exit code of its kind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests import oci
from tests.estargz import build, file
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import LAYERGATE, CommandFailed, Layergate, call
from tests.integration.node import Node, running_node
from tests.integration.processes import unmount_below

pytestmark = pytest.mark.containerd


def refused(code: int, *arguments: str) -> str:
    """Run a command that fails with this exit code; its one line, or the last one of a usage error."""
    with pytest.raises(CommandFailed) as raised:
        call([*LAYERGATE, *arguments], timeout=60)
    lines = [line for line in raised.value.output.splitlines() if " level=info " not in line]
    assert raised.value.returncode == code, raised.value.output
    assert len(lines) == 1 or lines[0].startswith("Usage: "), raised.value.output
    assert "Traceback" not in raised.value.output
    return lines[-1]


def serve(directory: str, *, root: str = "", address: str = "", config: str = "") -> tuple[str, ...]:
    """The arguments of a serve below `directory`; the default configuration is an empty file."""
    path = config or f"{directory}/empty.toml"
    if not config:
        with open(path, "w", encoding="utf-8"):
            pass
    root, address = root or f"{directory}/root", address or f"{directory}/s"
    return "serve", "--root", root, "--address", address, "--config", path


@pytest.fixture
def place(directory: str) -> str:
    os.mkdir(directory)
    return directory


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[stream]\nenbaled = true\n", "enbaled"),
        ("[streams]\n", "streams"),
        ('[lazy]\nmode = "fast"\n', "mode"),
        ("[stream]\nparallel_layers = 0\n", "parallel_layers"),
        ('[stream]\nenabled = "yes"\n', "enabled"),
        ('[registry."localhost:5000"]\nplain = true\n', "plain"),
        ("[mounter]\nwait_seconds = -1\n", "wait_seconds"),
        ("[mounter.registry]\nretry_limit = 1\n", "registry"),
        ('[log]\nlevel = "loud"\n', "level"),
        ("[stream\n", "line 1"),
        ("enabled = tru\n", "line 1"),
        ('a = "\\ud800"\n', "not TOML"),
    ],
)
def test_an_error_in_the_configuration_is_named(place: str, text: str, named: str) -> None:
    path = f"{place}/config.toml"
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    line = refused(2, *serve(place, config=path))
    assert path in line
    assert named in line
    assert not os.path.exists(f"{place}/root")


def test_pull_reads_the_same_configuration(place: str) -> None:
    path = f"{place}/config.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write("[pull]\n")
    assert f"{path}: " in refused(2, "pull", "--config", path, "localhost/image")


def test_a_configuration_that_cannot_be_read(place: str) -> None:
    with open(f"{place}/latin", "wb") as file:
        file.write(b'[credentials]\ndocker_config = "\xe9"\n')
    for path in (f"{place}/missing.toml", place, f"{place}/latin"):
        assert path in refused(2, *serve(place, config=path))


def test_a_root_that_cannot_be_written(place: str) -> None:
    with open(f"{place}/file", "wb"):
        pass
    os.mkdir(f"{place}/ro")
    call(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "ro", f"{place}/ro"])
    try:
        for root in (f"{place}/file/root", f"{place}/ro/root", f"{place}/ro", "/proc/layergate"):
            line = refused(7, *serve(place, root=root))
            assert root in line
    finally:
        unmount_below(place)


def test_a_root_that_is_a_file(place: str) -> None:
    with open(f"{place}/file", "wb"):
        pass
    line = refused(2, *serve(place, root=f"{place}/file"))
    assert f"{place}/file" in line


def test_an_address_that_cannot_be_served(place: str) -> None:
    with open(f"{place}/file", "wb"):
        pass
    line = refused(9, *serve(place, address=f"{place}/file"))
    assert f"{place}/file" in line
    line = refused(2, *serve(place, address=f"{place}/file/s"))
    assert f"{place}/file/s" in line
    line = refused(2, *serve(place, address=f"{place}/{'x' * 120}/s"))
    assert "107 bytes" in line


@pytest.fixture
def serving(place: str) -> Iterator[Layergate]:
    with Layergate(f"{place}/first") as layergate:
        yield layergate


def test_a_second_serve_is_refused_and_the_first_goes_on(place: str, serving: Layergate) -> None:
    line = refused(9, *serve(place, root=serving.root))
    assert serving.root in line
    line = refused(9, *serve(place, address=serving.socket))
    assert serving.socket in line
    assert serving.status()["layers"] == []


def test_a_socket_that_a_killed_serve_left_is_taken_over(place: str, serving: Layergate) -> None:
    serving.kill9()
    assert os.path.exists(serving.socket)
    line = refused(9, "status", "--address", serving.socket)
    assert serving.socket in line
    serving.start()
    assert serving.status()["layers"] == []


def test_status_without_serve(place: str) -> None:
    assert f"{place}/none" in refused(9, "status", "--address", f"{place}/none")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/dead")
    assert f"{place}/dead" in refused(9, "status", "--json", "--address", f"{place}/dead")


def test_pull_without_containerd(place: str) -> None:
    assert f"{place}/none" in refused(9, "pull", "--containerd", f"{place}/none", "localhost/image")


def test_pull_of_what_is_no_reference(place: str) -> None:
    for reference in ("localhost/UPPER", "a b", "http://host/image", "image@sha256:12", ""):
        refused(2, "pull", "--containerd", f"{place}/none", reference)


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/reload", config='[log]\nlevel = "error"\n') as node:
        yield node


def test_pull_with_a_snapshotter_that_containerd_does_not_have(node: Node) -> None:
    line = refused(
        9, "pull", "--containerd", node.containerd.address, "--snapshotter", "nosuch", "localhost/image"
    )
    assert "nosuch" in line


def test_the_configuration_is_read_again_and_a_broken_one_changes_nothing(node: Node) -> None:
    """A registry at 127.0.0.1 talks plain HTTP unless it is configured not to; ours knows no TLS."""

    def pulled(tag: str) -> str:
        image = oci.image([build([file("f", tag.encode())])])
        return node.pull_unannounced(registry.add_image("reload/image", image, tag=tag))

    with FaultyRegistry() as registry:
        tls = f'[lazy]\nopen_timeout_seconds = 0.2\n[registry."{registry.host}"]\nplain_http = false\n'
        assert "(1 lazy)" in pulled("first")
        assert not node.events("remote_snapshot")
        node.configure(tls)
        assert "(1 unpacked)" in pulled("second")
        node.configure(tls + "[stream]\nnonsense = 1\n")
        (broken,) = node.events("config_not_reloaded")
        assert broken["level"] == "error"
        assert "nonsense" in broken["error"]
        assert "(1 unpacked)" in pulled("third")
        node.configure("[stream\n")
        assert len(node.events("config_not_reloaded")) == 2
        assert "(1 unpacked)" in pulled("fourth")
        node.configure("")
        assert "(1 lazy)" in pulled("fifth")
        assert len(node.events("remote_snapshot")) == 1
