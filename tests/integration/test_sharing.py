"""Layers are fetched once: for every image that has them, for every container, and across a removal."""

from __future__ import annotations

import random

import pytest

from tests import oci
from tests.estargz import Entry, Layer, build, dir, file, landmark
from tests.integration.conftest import References
from tests.integration.harness import Registry, Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import (
    MARGIN,
    ONE_STREAM,
    by_way_of,
    counting,
    image_files,
    incomplete,
    lowerdirs,
    plain_directories,
    read_layout,
    snapshots,
    status,
    until,
    until_complete,
    until_half_is_here,
    until_prefetched,
    until_started,
)
from tests.integration.node import ON_DEMAND, program_files, running_node

pytestmark = pytest.mark.containerd

LARGE = 4 << 20


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def programs() -> Layer:
    """What containers of these images run; prefetched, so that it is not part of what is counted."""
    return build([dir("bin/"), *program_files("sh", "cat", "sleep"), landmark()])


def data(number: int, *more: Entry) -> Layer:
    return build([dir("data/"), file(f"data/{number}", noise(number, LARGE)), *more])


def test_a_second_image_fetches_no_layer_of_the_first_again(
    registry: Registry, throttle: Throttle, directory: str
) -> None:
    shared = [programs(), data(1), data(2)]
    first = oci.image([*shared, data(3)])
    second = oci.image([*shared, build([file("own", b"the second image's own\n")])])
    references = [
        by_way_of(throttle, oci.push(registry.host, f"shared/{name}", one))
        for name, one in (("first", first), ("second", second))
    ]
    with running_node(directory) as node:
        node.pull(references[0])
        until_complete(node.layergate)
        assert throttle.bytes >= 3 * LARGE
        before = throttle.bytes
        node.pull(references[1])
        until_complete(node.layergate)
        assert node.run(references[1], ["cat", "/own"]) == "the second image's own\n"
        assert throttle.bytes - before < MARGIN
        with node.containerd.container(references[1], ["sleep", "infinity"], snapshotter=node.name) as one:
            assert len(lowerdirs(one)) == 4
            for number in (1, 2):
                with open(f"{one.root}/data/{number}", "rb") as opened:
                    assert opened.read() == noise(number, LARGE)

        def images() -> dict[str, set[str]]:
            return {one.digest: set(one.images) for one in status(node.layergate).layers}

        of_both = {layer.digest: set(references) for layer in shared}
        own = {
            one.layers[3].digest: {reference}
            for one, reference in zip((first, second), references, strict=True)
        }
        until(lambda: images() == of_both | own, "layers to be known as both images'")


def test_a_second_image_joins_in_the_streaming_of_the_first(
    registry: Registry, throttle: Throttle, directory: str
) -> None:
    shared = [programs(), data(11), data(12)]
    images = [oci.image([*shared, build([file("own", b"%d" % number)])]) for number in range(3)]
    references = [
        by_way_of(throttle, oci.push(registry.host, f"joined/{number}", one))
        for number, one in enumerate(images)
    ]
    throttle.rate = 1_000_000
    with running_node(directory) as node:
        for reference in references:
            node.pull(reference)
        assert incomplete(node.layergate)
        throttle.rate = 0
        until_complete(node.layergate)
        assert throttle.bytes < sum(len(layer.blob) for layer in shared) + 3 * MARGIN
        for number, reference in enumerate(references):
            assert node.run(reference, ["cat", "/own"]) == str(number)


def test_containers_share_what_was_fetched_on_demand(
    registry: Registry, throttle: Throttle, directory: str
) -> None:
    """On one lazy lower, and on another one that has the layer too."""
    content = noise(21, 100_000)
    shared = build([dir("data/"), file("data/shared", content), file("data/untouched", noise(22, LARGE))])
    images = [oci.image([programs(), shared, build([file("own", b"%d" % number)])]) for number in range(2)]
    references = [
        by_way_of(throttle, oci.push(registry.host, f"demanded/{number}", one))
        for number, one in enumerate(images)
    ]
    with running_node(directory, config=ON_DEMAND) as node:
        for reference in references:
            node.pull(reference)
        until_prefetched(node.layergate)
        sleep, name = ["sleep", "infinity"], node.name
        with (
            node.containerd.container(references[0], sleep, snapshotter=name) as one,
            node.containerd.container(references[0], sleep, snapshotter=name) as two,
            node.containerd.container(references[1], sleep, snapshotter=name) as three,
        ):
            assert lowerdirs(one) == lowerdirs(two) != lowerdirs(three)
            for container in (one, two, three):
                until_started(container)
            asked = counting(node.layergate)
            before = throttle.bytes
            found = []
            for container in (one, two, three):
                with open(f"{container.root}/data/shared", "rb") as opened:
                    found.append(opened.read())
            assert found == [content] * 3
            assert (asked().lookup_file, asked().open) == (1, 0)
            assert len(content) < throttle.bytes - before < len(content) + 16_384


def test_an_image_that_is_removed_comes_back_out_of_the_cache(
    image: RealImage, references: References, throttle: Throttle, directory: str
) -> None:
    layout = read_layout(image.optimized)
    reference = by_way_of(throttle, references.optimized)
    with running_node(directory) as node:
        layergate, containerd = node.layergate, node.containerd
        node.pull(reference)
        until_complete(layergate)
        with containerd.container(reference, snapshotter=node.name) as container:
            containerd.ctr("images", "remove", "--sync", reference)
            # The container holds its chain; the image is gone.
            assert len(snapshots(node)) == 5
            with open(f"{container.root}/etc/hostname", encoding="utf-8") as hostname:
                assert hostname.read() == "debian\n"
        until(lambda: snapshots(node) == {}, "snapshots to be collected")
        assert {one.digest for one in status(layergate).layers} == set(layout.layers)

        before = throttle.bytes
        node.pull(reference)
        assert incomplete(layergate) == []
        assert len(snapshots(node)) == 4
        with containerd.container(reference, snapshotter=node.name) as container:
            assert set(lowerdirs(container)) == plain_directories(layergate)
        assert throttle.bytes - before < MARGIN
        assert "level=error" not in layergate.log_end()


def test_an_image_that_is_removed_while_it_streams_goes_on_where_it_was(
    image: RealImage, references: References, throttle: Throttle, directory: str
) -> None:
    layout = read_layout(image.optimized)
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 20_000_000
    with running_node(directory, config=ONE_STREAM) as node:
        layergate = node.layergate
        node.pull(reference)
        until_half_is_here(layergate, layout)
        throttle.rate = 4_000_000
        node.containerd.ctr("images", "remove", "--sync", reference)
        until(lambda: layergate.log_end().count("event=layer_not_wanted"), "streaming to end")
        assert snapshots(node) == {}
        left = incomplete(layergate)
        assert left
        here = [file.path for file in image_files(layergate, layout) if file.here]
        assert len(here) > 1000

        throttle.rate = 0
        node.pull(reference)
        until_complete(layergate)
        assert throttle.bytes < 1.1 * layout.size
        assert "level=error" not in layergate.log_end()
