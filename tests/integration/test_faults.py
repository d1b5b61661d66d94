"""What is broken in a layer or in its registry: a clear error or a retry, and never a wrong byte."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import pytest

from tests import oci, trees
from tests.estargz import Layer, Toc, build, dir, file, footer_bytes
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import CommandFailed
from tests.integration.node import ON_DEMAND, Node, differences, running_node
from tests.registry_faults import (
    BasicLogin,
    BearerLogin,
    Drop,
    Fault,
    IgnoreRange,
    Silence,
    Status,
    Truncate,
    WrongBytes,
    docker_config,
)

pytestmark = pytest.mark.containerd

UNAVAILABLE: Final = Status(503, (("Retry-After", "3600"),))
"""A registry that is not worth another try."""

CHUNK: Final = 1 << 16

_seeds = itertools.count()


@pytest.fixture(scope="module")
def nodes(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/faults", config=ON_DEMAND) as node:
        yield node


@pytest.fixture
def node(nodes: Node) -> Node:
    """A node where nothing streams until the test says so."""
    nodes.configure(ON_DEMAND)
    return nodes


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


def noise(size: int) -> bytes:
    """Other bytes each time, which do not compress: each test has layers of its own."""
    return random.Random(next(_seeds)).randbytes(size)


def contents() -> dict[str, bytes]:
    """The files of a layer: a small one, one of three chunks, and one behind it."""
    return {"etc/small": noise(100), "etc/three": noise(3 * CHUNK), "etc/last": noise(1000)}


def layer_of(files: dict[str, bytes], mutate: Callable[[Toc], None] | None = None) -> Layer:
    entries = [dir("etc/"), *(file(path, content) for path, content in files.items())]
    return build(entries, chunk_size=CHUNK, toc_mutate=mutate)


def read(root: str, path: str) -> bytes:
    with open(os.path.join(root, path), "rb") as opened:
        return opened.read()


def unreadable(root: str, path: str) -> None:
    """Opening or reading the file gives EIO, and nothing else."""
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        read(root, path)


def damaged_footer(layer: Layer, footer: bytes) -> Layer:
    """The layer with another footer; still gzip from its first to its last byte."""
    return replace(layer, blob=layer.blob[: -len(footer)] + footer)


def unpacked_the_ordinary_way(node: Node, registry: FaultyRegistry, layer: Layer) -> None:
    """Pull an image with this layer and a sound lazy one: it is unpacked, and all is as it should be."""
    image = oci.image([layer_of({"etc/below": noise(10)}), layer])
    reference = registry.add_image("team/broken", image)
    assert "(1 lazy, 1 unpacked)" in node.pull(reference)
    with node.mounted(image) as root:
        assert differences(trees.scan(root), node.ordinary(image, reference)) == []


# What is wrong with the layer itself


@pytest.mark.parametrize(
    ("footer", "reason"),
    [
        (footer_bytes(1000).replace(b"STARGZ", b"STARGX"), "no eStargz footer"),
        (footer_bytes(0xFFFFFF), "outside the layer"),
        (footer_bytes(0).replace(b"%016x" % 0, b"not a hex number"), "not hexadecimal"),
        (footer_bytes(0), "TOC offset"),
        (footer_bytes(7), "table of contents"),
    ],
    ids=["no magic", "too far", "no number", "at a file", "inside a member"],
)
def test_a_corrupt_footer_is_named_and_the_layer_unpacked_the_ordinary_way(
    node: Node, registry: FaultyRegistry, footer: bytes, reason: str
) -> None:
    layer = damaged_footer(layer_of(contents()), footer)
    unpacked_the_ordinary_way(node, registry, layer)
    found = node.event("layer_not_estargz", digest=layer.digest) or node.event(
        "layer_not_opened", digest=layer.digest
    )
    assert found is not None
    assert found["level"] == "warning"  # its annotation promised a table of contents
    assert reason in found.get("reason", "") + found.get("error", "")


def test_a_table_of_contents_with_another_digest_is_not_believed(
    node: Node, registry: FaultyRegistry
) -> None:
    layer = replace(layer_of(contents()), toc_digest=oci.digest(b"another"))
    unpacked_the_ordinary_way(node, registry, layer)
    found = node.event("layer_not_opened", digest=layer.digest)
    assert found is not None
    assert found["level"] == "warning"
    assert oci.digest(b"another") in found["error"]


def test_a_table_of_contents_that_contradicts_itself_is_not_used(
    node: Node, registry: FaultyRegistry
) -> None:
    def mutate(toc: Toc) -> None:
        toc["entries"].append({"name": "etc/odd", "type": "socket"})

    layer = layer_of(contents(), mutate)
    unpacked_the_ordinary_way(node, registry, layer)
    found = node.event("layer_not_lazy", digest=layer.digest)
    assert found is not None
    assert found["level"] == "warning"
    assert "etc/odd" in found["error"]


@pytest.mark.parametrize("part", [0, 2])
def test_a_corrupt_chunk_is_never_read_and_the_rest_is(
    node: Node, registry: FaultyRegistry, part: int
) -> None:
    files = contents()

    def mutate(toc: Toc) -> None:
        chunks = [entry for entry in toc["entries"] if entry["name"] == "etc/three"]
        chunks[part]["chunkDigest"] = oci.digest(b"another")

    layer = layer_of(files, mutate)
    image = oci.image([layer])
    reference = registry.add_image("team/chunk", image)
    assert "(1 lazy)" in node.pull(reference)
    with node.mounted(image) as root:
        unreadable(root, "etc/three")
        assert os.stat(f"{root}/etc/three").st_size == 3 * CHUNK
        assert read(root, "etc/last") == files["etc/last"]
        node.configure("")
        assert "etc/three" in node.until_failed(layer.digest)
        unreadable(root, "etc/three")
        assert read(root, "etc/small") == files["etc/small"]
    state = node.state(layer.digest)
    assert state is not None
    assert node.plain_files(state.layer) == {path: files[path] for path in ("etc/last", "etc/small")}
    found = node.event("layer_failed", layer=state.layer)
    assert found is not None
    assert "etc/three" in found["error"]


def test_bytes_that_change_on_their_way_are_not_read_until_they_come_right(
    node: Node, registry: FaultyRegistry
) -> None:
    files = contents()
    layer = layer_of(files)
    image = oci.image([layer])
    assert "(1 lazy)" in node.pull(registry.add_image("team/wire", image))
    registry.fail("blob", WrongBytes(), path=layer.digest)
    with node.mounted(image) as root:
        for path in files:
            unreadable(root, path)
        registry.heal()
        assert {path: read(root, path) for path in files} == files


def test_a_download_of_other_bytes_is_refused_and_leaves_nothing(
    node: Node, registry: FaultyRegistry
) -> None:
    layer = replace(layer_of(contents()), toc_json=b"", toc_digest="")
    reference = registry.add_image("team/download", oci.image([layer]))
    registry.fail("blob", WrongBytes(), path=layer.digest)
    failed(node, reference, 6, layer.digest)
    registry.heal()
    assert "(1 unpacked)" in node.pull(reference)


# What is wrong with the registry while an image is pulled


def failed(node: Node, reference: str, code: int, *words: str, options: tuple[str, ...] = ()) -> None:
    """A pull that fails in one line with this exit code and these words in it, and leaves nothing behind."""
    before = node.containerd.ctr("snapshots", "--snapshotter", node.name, "ls")
    with pytest.raises(CommandFailed) as raised:
        node.pull(reference, *options)
    assert raised.value.returncode == code
    (line,) = [line for line in raised.value.output.splitlines() if line.startswith("layergate: ")]
    assert "Traceback" not in raised.value.output
    for word in words:
        assert word in line
    assert reference not in node.containerd.ctr("images", "ls", "--quiet").split()
    assert node.containerd.ctr("leases", "ls", "--quiet").split() == []
    after = node.containerd.ctr("snapshots", "--snapshotter", node.name, "ls")
    assert "Active" not in after
    assert after == before


def test_an_image_that_is_not_there(node: Node, registry: FaultyRegistry) -> None:
    failed(node, f"{registry.host}/team/nothing:here", 3, f"{registry.host}/team/nothing")


def test_a_layer_that_is_not_there(node: Node, registry: FaultyRegistry) -> None:
    layer = layer_of(contents())
    reference = registry.add_image("team/half", oci.image([layer]))
    registry.remove_blob(layer.digest)
    failed(node, reference, 3, layer.digest[:19])


def test_a_registry_that_wants_a_login(node: Node, registry: FaultyRegistry) -> None:
    reference = registry.add_image("team/private", oci.image([layer_of(contents())]))
    registry.require(BearerLogin("somebody", "secret"))
    failed(node, reference, 4, registry.host)


def test_a_registry_that_is_down(node: Node, registry: FaultyRegistry) -> None:
    reference = registry.add_image("team/down", oci.image([layer_of(contents())]))
    registry.fail("manifest", UNAVAILABLE)
    failed(node, reference, 5, registry.host, "503")


def test_layers_that_cannot_be_had(node: Node, registry: FaultyRegistry) -> None:
    layer = layer_of(contents())
    reference = registry.add_image("team/down", oci.image([layer]))
    registry.fail("blob", UNAVAILABLE, path=layer.digest)
    failed(node, reference, 5, registry.host, "503")


@pytest.mark.parametrize("fault", [Status(500), Status(429), Drop(1000), Truncate(1000), Drop(0)], ids=repr)
def test_a_fault_that_passes_is_tried_again(node: Node, registry: FaultyRegistry, fault: Fault) -> None:
    files = contents()
    layer = layer_of(files)
    image = oci.image([layer])
    reference = registry.add_image("team/passing", image)
    registry.fail("blob", fault, times=2, path=layer.digest)
    registry.fail("manifest", Status(502), times=1)
    assert "(1 lazy)" in node.pull(reference)
    with node.mounted(image) as root:
        assert {path: read(root, path) for path in files} == files


@pytest.mark.parametrize("fault", [Status(404), Status(403), UNAVAILABLE, WrongBytes()], ids=repr)
def test_a_layer_that_cannot_be_opened_is_unpacked_the_ordinary_way(
    node: Node, registry: FaultyRegistry, fault: Fault
) -> None:
    layer = layer_of(contents())
    image = oci.image([layer])
    reference = registry.add_image("team/opening", image)
    registry.fail("blob", fault, times=1, path=layer.digest)
    assert "(1 unpacked)" in node.pull_unannounced(reference)
    found = node.event("layer_not_opened", digest=layer.digest) or node.event(
        "layer_not_estargz", digest=layer.digest
    )
    assert found is not None
    assert found["level"] == "warning"
    with node.mounted(image) as root:
        assert differences(trees.scan(root), node.ordinary(image, reference)) == []


def test_a_registry_that_never_answers_is_not_waited_for(node: Node, registry: FaultyRegistry) -> None:
    node.configure("[lazy]\nopen_timeout_seconds = 0.5\n")
    layer = layer_of(contents())
    image = oci.image([layer])
    reference = registry.add_image("team/silent", image)
    registry.fail("blob", Silence(), times=1, path=layer.digest)
    assert "(1 unpacked)" in node.pull_unannounced(reference)
    assert node.event("layer_open_timed_out", digest=layer.digest) is not None


def test_a_registry_that_ignores_range(node: Node, registry: FaultyRegistry) -> None:
    """Small layers can be had all the same; to have parts of large ones that way would waste the link."""
    files, large = contents(), {"etc/large": noise(3 << 20)}
    small, heavy = layer_of(files), layer_of(large)
    image = oci.image([small, heavy])
    reference = registry.add_image("team/whole", image)
    registry.fail("blob", IgnoreRange())
    assert "(1 lazy, 1 unpacked)" in node.pull(reference)
    found = node.event("layer_not_opened", digest=heavy.digest)
    assert found is not None
    assert "ignores Range" in found["error"]
    with node.mounted(image) as root:
        assert {path: read(root, path) for path in files | large} == files | large


# What is wrong with the registry when the container runs already


@pytest.mark.parametrize("fault", [Status(404), Status(401), Status(403)], ids=repr)
def test_a_layer_that_is_refused_later_is_an_error_until_it_is_there_again(
    node: Node, registry: FaultyRegistry, fault: Fault
) -> None:
    files = contents()
    layer = layer_of(files)
    image = oci.image([layer])
    node.pull(registry.add_image("team/gone", image))
    registry.fail("blob", fault, path=layer.digest)
    with node.mounted(image) as root:
        unreadable(root, "etc/small")
        node.configure("")
        assert registry.host in node.until_failed(layer.digest)
        state = node.state(layer.digest)
        assert state is not None
        assert node.plain_files(state.layer) == {}
        registry.heal()
        assert {path: read(root, path) for path in files} == files


@pytest.mark.parametrize("fault", [Drop(70_000), Truncate(70_000), Status(500)], ids=repr)
def test_reads_go_on_where_a_connection_dropped(node: Node, registry: FaultyRegistry, fault: Fault) -> None:
    files = contents()
    layer = layer_of(files)
    image = oci.image([layer])
    node.pull(registry.add_image("team/reads", image))
    registry.fail("blob", fault, times=2, path=layer.digest)
    with node.mounted(image) as root:
        assert {path: read(root, path) for path in files} == files


@pytest.mark.parametrize("fault", [Drop(70_000), Truncate(70_000), Status(500)], ids=repr)
def test_streams_go_on_where_a_connection_dropped(node: Node, registry: FaultyRegistry, fault: Fault) -> None:
    files = contents() | {f"etc/{number}": noise(50_000) for number in range(10)}
    layer = layer_of(files)
    image = oci.image([layer])
    node.pull(registry.add_image("team/streams", image))
    registry.fail("blob", fault, times=3, path=layer.digest)
    sent = registry.sent["blob"]
    node.configure("")
    node.until_complete(image)
    state = node.state(layer.digest)
    assert state is not None
    assert node.plain_files(state.layer) == files
    # What had come was not fetched again, but for what a reset took away in the kernel.
    assert registry.sent["blob"] - sent <= len(layer.blob) + 3 * 70_000


def test_a_token_that_expires_while_a_container_runs_is_got_anew(
    file_system: str, registry: FaultyRegistry
) -> None:
    files = contents()
    image = oci.image([layer_of(files)])
    reference = registry.add_image("team/login", image)
    registry.require(BearerLogin("somebody", "secret"))
    directory = f"{file_system}/login"
    os.mkdir(directory)
    config = credentials(directory, registry.host, "somebody", "secret")
    with running_node(f"{directory}/n", config=ON_DEMAND + config) as node:
        with open(f"{directory}/pull.toml", "w", encoding="utf-8") as written:
            written.write(config)
        assert "(1 lazy)" in node.pull(reference, "--config", f"{directory}/pull.toml")
        with node.mounted(image) as root:
            assert read(root, "etc/small") == files["etc/small"]
            registry.expire_tokens()
            assert {path: read(root, path) for path in files} == files


def test_a_client_that_knows_a_password_which_serve_does_not(
    node: Node, registry: FaultyRegistry, directory: str
) -> None:
    layer = layer_of(contents())
    image = oci.image([layer])
    reference = registry.add_image("team/theirs", image)
    registry.require(BearerLogin("somebody", "secret"))
    os.mkdir(directory)
    with open(f"{directory}/pull.toml", "w", encoding="utf-8") as written:
        written.write(credentials(directory, registry.host, "somebody", "secret"))
    assert "(1 unpacked)" in node.pull(reference, "--config", f"{directory}/pull.toml")
    found = node.event("layer_not_lazy", digest=layer.digest)
    assert found is not None
    assert registry.host in found["error"]


def credentials(directory: str, host: str, user: str, password: str) -> str:
    """Write a docker config.json; the configuration that names it."""
    with open(f"{directory}/docker.json", "w", encoding="utf-8") as written:
        written.write(docker_config(host, BasicLogin(user, password)))
    return f'[credentials]\ndocker_config = "{directory}/docker.json"\n'
