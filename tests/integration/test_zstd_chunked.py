"""zstd:chunked layers are read lazily like eStargz ones, whoever made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests import oci, trees
from tests.estargz import Layer, build, dir, file, hardlink, landmark, opaque, plain, symlink, whiteout
from tests.faulty_registry import FaultyRegistry
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.equality import assert_equal_in_three_states, unpacked
from tests.integration.harness import Registry, Throttle, mounts
from tests.integration.image import RealImage
from tests.integration.lazy import by_way_of, read_layout, status
from tests.integration.manual import SLOW, ManualNode, write_layout
from tests.integration.node import ON_DEMAND, Node, differences, program_files, running_node
from tests.integration.zstd_image import FORMS, zstd_image
from tests.registry_faults import WrongBytes
from tests.zstd_chunked import Variant, ZstdLayer, build_zstd, zstd_footer

pytestmark = pytest.mark.containerd

PROGRAMS: Final = program_files("sh", "cat", "sleep")
HOLES: Final = b"begin" + bytes(3_000_000) + b"end"
READ: Final = ["/bin/cat", "/etc/bottom", "/etc/middle", "/etc/top"]
SAID: Final = "bottom\nmiddle\ntop\n"


def layers(tag: str, variant: Variant) -> list[ZstdLayer]:
    """Three layers with something of everything; `tag` makes them an image's own."""
    bottom = [
        *PROGRAMS,
        dir("etc/", mode=0o750, uid=3),
        file("etc/bottom", b"bottom\n", xattrs={"user.note": b"\x00\xff"}),
        file("etc/gone", tag.encode()),
        file("etc/empty"),
        landmark(),
        hardlink("etc/again", "etc/bottom"),
        symlink("etc/link", "bottom"),
        dir("opt/"),
        file("opt/below", b"b"),
        file("opt/holes", HOLES, mode=0o4755),
    ]
    middle = [
        dir("etc/"),
        file("etc/middle", b"middle\n"),
        whiteout("etc/gone"),
        dir("opt/"),
        opaque("opt"),
        file("opt/own", tag.encode()),
        file("opt/numbers", b"".join(number.to_bytes(4, "big") for number in range(500_000))),
    ]
    top = [dir("etc/"), file("etc/top", b"top\n"), dir("opt/"), file("opt/tag", tag.encode())]
    return [build_zstd(entries, variant, chunk_size=1 << 16) for entries in (bottom, middle, top)]


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/zstd", config=ON_DEMAND) as node:
        yield node


def equal_before_and_after_completion(node: Node, image: oci.Image, reference: str) -> None:
    """Compare a pulled image with the ordinary one while nothing streams, in the same mount, in a new one."""
    expected = node.ordinary(image, reference)
    assert node.run(reference, READ) == SAID
    with node.mounted(image) as root:
        assert "/root/lazy/" in mounts(root)[0].options
        assert differences(trees.scan(root), expected) == []
        node.configure("")
        node.until_complete(image)
        assert differences(trees.scan(root), expected) == []
    assert node.run(reference, READ) == SAID
    with node.mounted(image) as root:
        assert "/root/lazy/" not in mounts(root)[0].options
        assert differences(trees.scan(root), expected) == []


@pytest.mark.parametrize("variant", Variant)
def test_an_image_is_pulled_lazily(node: Node, shelf: FaultyRegistry, variant: Variant) -> None:
    image = oci.image(layers(variant.value, variant))
    reference = shelf.add_image("zstd/image", image, tag=variant.name.lower())
    node.configure(ON_DEMAND)
    assert "(3 lazy)" in node.pull(reference)
    equal_before_and_after_completion(node, image, reference)
    assert set(node.states_of(image).values()) == {"complete"}


@pytest.mark.parametrize("variant", Variant)
def test_a_promise_that_is_no_label_is_found_in_the_manifest(
    node: Node, shelf: FaultyRegistry, variant: Variant
) -> None:
    image = oci.image(layers(f"unannounced {variant.value}", variant))
    reference = shelf.add_image("zstd/unannounced", image, tag=variant.name.lower())
    node.configure(ON_DEMAND)
    assert "(3 lazy)" in node.pull_unannounced(reference)
    assert node.run(reference, READ) == SAID


def test_an_image_of_all_kinds_of_layers(node: Node, shelf: FaultyRegistry) -> None:
    bottom, middle, top = layers("mixed", Variant.CONTAINERS)
    image = oci.image(
        [
            plain([dir("srv/"), file("srv/lowest", b"ordinary")]),
            bottom,
            build([dir("srv/"), file("srv/estargz", b"estargz"), whiteout("srv/lowest")]),
            build_zstd([dir("srv/"), file("srv/stargz", b"stargz")]),
            middle,
            plain([dir("srv/"), file("srv/between", b"ordinary")]),
            build_zstd([dir("srv/"), file("srv/first", b"first")], Variant.FIRST_CONTAINERS),
            top,
        ]
    )
    reference = shelf.add_image("zstd/mixed", image)
    node.configure(ON_DEMAND)
    assert "(6 lazy, 2 unpacked)" in node.pull(reference)
    equal_before_and_after_completion(node, image, reference)


def test_only_what_is_opened_is_fetched(node: Node, shelf: FaultyRegistry) -> None:
    image = oci.image(layers("opened", Variant.CONTAINERS))
    reference = shelf.add_image("zstd/opened", image)
    node.configure(ON_DEMAND)
    node.pull(reference)
    keys = {one.digest: one.layer for one in node.states()}
    middle = keys[image.layers[1].digest]
    with node.mounted(image) as root:
        with open(f"{root}/etc/middle", "rb") as opened:
            assert opened.read() == b"middle\n"
        here = node.plain_files(middle)
        assert here["etc/middle"] == b"middle\n"
        assert "opt/numbers" not in here
        with open(f"{root}/opt/numbers", "rb") as opened:
            opened.seek(1_600_000)
            assert int.from_bytes(opened.read(4), "big") == 400_000


def test_wrong_bytes_are_never_shown(node: Node, shelf: FaultyRegistry) -> None:
    image = oci.image(layers("wrong", Variant.CONTAINERS))
    reference = shelf.add_image("zstd/wrong", image)
    node.configure("[mounter]\nwait_seconds = 2\n" + ON_DEMAND)
    node.pull(reference)
    shelf.fail("blob", WrongBytes(), path=image.layers[1].digest)
    with node.mounted(image) as root:
        with pytest.raises(OSError, match=r"Input/output error|Too many levels"):
            Path(f"{root}/etc/middle").read_bytes()
        with open(f"{root}/etc/top", "rb") as opened:
            assert opened.read() == b"top\n"


@pytest.mark.parametrize("damage", ["footer", "position", "toc", "no annotation"])
def test_a_layer_that_cannot_be_opened_is_unpacked(node: Node, shelf: FaultyRegistry, damage: str) -> None:
    bottom, middle, top = layers(f"damaged {damage}", Variant.CONTAINERS)
    offset, size, _, _ = map(int, middle.position.split(":"))
    ends = {
        "footer": middle.blob[:-1] + b"y",
        "position": middle.blob[: offset + size] + zstd_footer(1 << 40, size, 0),
        "toc": middle.blob[: offset + size - 1] + b"?" + middle.blob[offset + size :],
        "no annotation": middle.blob,
    }
    damaged: Layer = replace(middle, blob=ends[damage])
    if damage == "no annotation":
        damaged = Layer(middle.blob, middle.diff_id, middle.uncompressed_size, media_type=middle.media_type)
    image = oci.image([bottom, damaged, top])
    reference = shelf.add_image("zstd/damaged", image, tag=damage.replace(" ", "-"))
    node.configure(ON_DEMAND)
    assert "1 unpacked" in node.pull(reference)
    assert node.run(reference, READ) == SAID


def test_streaming_goes_on_after_a_restart(shelf: FaultyRegistry, directory: str) -> None:
    image = oci.image(layers("restart", Variant.CONTAINERS))
    reference = shelf.add_image("zstd/restart", image)
    with running_node(directory, config=ON_DEMAND) as node:
        node.pull(reference)
        with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as one:
            node.layergate.kill9()
            # Through the mounter, while nobody serves.
            assert one.execute("/bin/cat", "/etc/middle") == "middle\n"
            node.start_again()
            assert node.is_lazy(image)
            node.configure("")
            node.until_complete(image)
            node.layergate.end_everything()
            assert one.execute(*READ) == SAID
            assert one.execute("/bin/cat", "/opt/tag") == "restart"


# Mounts by hand


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("source", ["registry", "layout", "file"])
def test_mounted_by_hand(directory: str, registry: Registry, variant: Variant, source: str) -> None:
    image = oci.image(layers(f"by hand {variant.value}", variant))
    with ManualNode(directory, config=SLOW) as node:
        if source == "registry":
            named = ["--plain-http", oci.push(registry.host, f"zstd/{variant.name.lower()}", image)]
        elif source == "layout":
            named = [write_layout(f"{directory}/layout", image)]
        else:
            named = [f"{directory}/layer.zst"]
            with open(named[0], "wb") as blob:
                blob.write(image.layers[1].blob)
        target = node.mountpoint()
        node.run("mount", *named, target)
        assert node.state(target).state == "lazy"
        with open(f"{target}/etc/middle", "rb") as opened:
            assert opened.read() == b"middle\n"
        shown = trees.scan(target)
        assert shown["opt/numbers"].size == 2_000_000
        node.configure("")
        node.until_native(target)
        assert trees.difference(trees.scan(target), shown) == []
        node.run("umount", target)


# The real image, made by Debian's tools


@pytest.fixture(scope="module")
def forms(image: RealImage) -> dict[str, str]:
    """The OCI layout of each form."""
    return zstd_image(image)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", FORMS)
def test_trees_are_equal_while_layers_stream_and_afterwards(
    image: RealImage,
    forms: dict[str, str],
    references: References,
    registry: Registry,
    throttle: Throttle,
    directory: str,
    form: str,
) -> None:
    reference = registry.push(forms[form], "zstd/python", tag=form)
    # Debian's skopeo leaves the zeros at a tar's end out, so that the layers do not have their DiffIDs, and
    # containerd refuses to unpack them: the source that it compressed anew has the same tree.
    source = (image.plain, references.plain) if form == "containers" else (forms[form], reference)
    with unpacked(f"{directory}/ordinary", *source) as ordinary:
        ordinary = replace(ordinary, layout=read_layout(forms[form]))
        assert_equal_in_three_states(ordinary, reference, throttle, directory)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("form", FORMS)
def test_it_runs_on_what_it_asks_for(
    forms: dict[str, str], registry: Registry, throttle: Throttle, directory: str, form: str
) -> None:
    reference = by_way_of(throttle, registry.push(forms[form], "zstd/python", tag=form))
    with running_node(directory, config=f"{ON_DEMAND}[mounter]\nneighbour_bytes = 0\n") as node:
        assert "4 layers (4 lazy), 0.0 MB downloaded" in node.pull(reference)
        assert node.run(reference, recipe.COMMAND) == recipe.OUTPUT
        fetched = status(node.layergate).fetched_bytes
        assert fetched.on_demand > 0
        assert fetched.background == 0
        assert fetched.prefetch < 100_000, "what containerd itself looks up, before a start"
        assert throttle.bytes < 0.3 * read_layout(forms[form]).size
