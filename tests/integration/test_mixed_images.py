"""Images with layers that are not eStargz: containerd unpacks those onto our mounts, among lazy ones."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from tests import oci, trees
from tests.estargz import Entry, Layer, build, dir, file, opaque, plain, whiteout
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import mounts
from tests.integration.node import ON_DEMAND, Node, differences, program_files, running_node

pytestmark = pytest.mark.containerd

TAR_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
ZSTD_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
_ZSTD_BLOCK: Final = 128 << 10

PROGRAMS: Final = program_files("sh", "cat", "sleep")
READ: Final = ["/bin/cat", "/etc/bottom", "/etc/middle", "/etc/top"]


def tar(layer: Layer) -> Layer:
    """The layer uncompressed."""
    return replace(layer, blob=gzip.decompress(layer.blob), media_type=TAR_LAYER)


def zstd(layer: Layer) -> Layer:
    """The layer in one zstd frame of raw blocks, which is as valid as a compressed one (RFC 8878, 3.1.1)."""
    data = gzip.decompress(layer.blob)
    # Frame header: content size in 4 bytes (2 << 6), single segment (1 << 5).
    frame = b"\x28\xb5\x2f\xfd" + bytes([2 << 6 | 1 << 5]) + len(data).to_bytes(4, "little")
    for start in range(0, len(data), _ZSTD_BLOCK):
        block = data[start : start + _ZSTD_BLOCK]
        last = start + _ZSTD_BLOCK >= len(data)
        frame += (len(block) << 3 | last).to_bytes(3, "little") + block
    return replace(layer, blob=frame, media_type=ZSTD_LAYER)


def bottom(tag: str) -> list[Layer]:
    """A lazy layer to run programs from, with files for others to hide; each image has its own."""
    return [
        build(
            [
                *PROGRAMS,
                dir("etc/"),
                file("etc/bottom", b"bottom\n"),
                file("etc/gone", tag.encode()),
                dir("opt/"),
                file("opt/b", b"b"),
            ]
        )
    ]


def middle(tag: str) -> list[Entry]:
    return [
        dir("etc/"),
        file("etc/middle", b"middle\n"),
        whiteout("etc/gone"),
        dir("opt/"),
        opaque("opt"),
        file("opt/m", tag.encode()),
    ]


def top(tag: str) -> list[Layer]:
    return [build([dir("etc/"), file("etc/top", b"top\n"), dir("opt/"), file("opt/t", tag.encode())])]


IMAGES: Final = {
    "a gzip layer between": oci.image([*bottom("1"), plain(middle("1")), *top("1")]),
    "a tar layer between": oci.image([*bottom("2"), tar(plain(middle("2"))), *top("2")]),
    "a zstd layer between": oci.image([*bottom("3"), zstd(plain(middle("3"))), *top("3")]),
    "a gzip layer at the bottom": oci.image(
        [plain([file("low", b"low")]), *bottom("4"), build(middle("4")), *top("4")]
    ),
    "a gzip layer on top": oci.image(
        [*bottom("5"), build(middle("5")), plain([dir("etc/"), file("etc/top", b"top\n")])]
    ),
    "gzip layers all around": oci.image(
        [
            plain([file("low", b"lower")]),
            *bottom("6"),
            plain(middle("6")),
            *top("6"),
            plain([file("high", b"high")]),
        ]
    ),
    "gzip layers only": oci.image(
        [
            plain([*PROGRAMS, dir("etc/"), file("etc/bottom", b"bottom\n"), file("etc/gone"), dir("opt/")]),
            plain(middle("0")),
            plain([dir("etc/"), file("etc/top", b"top\n")]),
        ]
    ),
    "no annotations": oci.image([*bottom("7"), build(middle("7")), *top("7")], annotate=False),
}


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/mixed", config=ON_DEMAND) as node:
        yield node


@pytest.mark.parametrize("name", IMAGES)
def test_it_runs_and_is_right_before_and_after_completion(
    node: Node, shelf: FaultyRegistry, name: str
) -> None:
    image = IMAGES[name]
    reference = shelf.add_image("mixed/image", image, tag=f"t{list(IMAGES).index(name)}")
    node.configure(ON_DEMAND)
    lazy = node.states_of(image) if "annotations" not in name else {}
    counts = [f"{len(lazy)} lazy"] * bool(lazy)
    ordinary = len(image.layers) - len(lazy)
    printed = node.pull(reference)
    assert f"({', '.join([*counts, f'{ordinary} unpacked'])})" in printed
    expected = node.ordinary(image, reference)
    said = "bottom\nmiddle\ntop\n"
    assert node.run(reference, READ) == said
    with node.mounted(image) as root:
        assert ("/root/lazy/" in mounts(root)[0].options) == bool(lazy)
        assert differences(trees.scan(root), expected) == []
        node.configure("")
        if lazy:
            node.until_complete(image)
        assert differences(trees.scan(root), expected) == []
    assert node.run(reference, READ) == said
    with node.mounted(image) as root:
        assert "/root/lazy/" not in mounts(root)[0].options
        assert differences(trees.scan(root), expected) == []


def test_a_container_that_started_before_completion_reads_and_writes_after_it(
    node: Node, shelf: FaultyRegistry
) -> None:
    image = oci.image([*bottom("8"), plain(middle("8")), *top("8")])
    reference = shelf.add_image("mixed/running", image)
    node.configure(ON_DEMAND)
    node.pull(reference)
    with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as container:
        assert container.execute("/bin/sh", "-c", "echo more >>/etc/middle && echo >/etc/new") == ""
        node.configure("")
        node.until_complete(image)
        assert container.execute(*READ) == "bottom\nmiddle\nmore\ntop\n"
        assert container.execute("/bin/sh", "-c", "echo more >>/etc/top && cat /etc/top") == "top\nmore\n"
    assert node.run(reference, READ) == "bottom\nmiddle\ntop\n"


def test_allowing_unverified_tables_of_contents_makes_layers_without_annotations_lazy(
    node: Node, shelf: FaultyRegistry
) -> None:
    layers = [*bottom("9"), build(middle("9")), *top("9")]
    reference = shelf.add_image("mixed/unverified", oci.image(layers, annotate=False))
    node.configure("[lazy]\nallow_unverified_toc = true\n")
    assert "(3 lazy)" in node.pull(reference)
    assert node.run(reference, READ) == "bottom\nmiddle\ntop\n"


def test_layers_are_unpacked_where_lazy_pulling_is_off(node: Node, shelf: FaultyRegistry) -> None:
    image = oci.image([*bottom("10"), build(middle("10")), *top("10")])
    reference = shelf.add_image("mixed/off", image)
    node.configure("[lazy]\nenabled = false\n")
    assert "(3 unpacked)" in node.pull(reference)
    assert set(node.states_of(image).values()) == {"unknown"}
    assert node.run(reference, READ) == "bottom\nmiddle\ntop\n"
