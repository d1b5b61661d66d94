"""An image starts before its layers are here: how little is fetched by then, and that it runs."""

from __future__ import annotations

import pytest

from mounter.client import Mounter
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import (
    by_way_of,
    incomplete,
    lowerdirs,
    plain_directories,
    read_layout,
    status,
    until_complete,
)
from tests.integration.node import ON_DEMAND, running_node

pytestmark = pytest.mark.containerd


def test_an_image_is_pulled_and_runs_before_its_layers_are_here(
    image: RealImage, references: References, throttle: Throttle, directory: str
) -> None:
    layout = read_layout(image.optimized)
    reference = by_way_of(throttle, references.optimized)
    throttle.rate = 2_000_000
    with running_node(directory) as node:
        printed = node.pull(reference)
        fetched = throttle.bytes
        assert fetched < 0.3 * layout.size
        assert "4 layers (4 lazy), 0.0 MB downloaded" in printed
        assert len(incomplete(node.layergate)) == 4

        throttle.rate = 5_000_000
        assert node.run(reference, recipe.COMMAND) == recipe.OUTPUT
        assert incomplete(node.layergate)
        assert throttle.bytes < layout.size

        throttle.rate = 0
        until_complete(node.layergate)
        assert node.run(reference, recipe.COMMAND) == recipe.OUTPUT
        with node.containerd.container(reference, snapshotter=node.name) as container:
            assert set(lowerdirs(container)) == plain_directories(node.layergate)
        counted = status(node.layergate)
        assert {one.digest for one in counted.layers} == set(layout.layers)
        assert all(one.bytes_done == one.bytes_total > 0 for one in counted.layers)
        assert all(one.files_done == one.files_total > 0 for one in counted.layers)


def test_an_image_without_landmarks_runs_on_what_it_asks_for(
    image: RealImage, references: References, throttle: Throttle, directory: str
) -> None:
    layout = read_layout(image.estargz)
    reference = by_way_of(throttle, references.estargz)
    with running_node(directory, config=ON_DEMAND) as node:
        node.pull(reference)
        assert node.run(reference, recipe.COMMAND) == recipe.OUTPUT
        fetched = status(node.layergate).fetched_bytes
        assert fetched.on_demand > 0
        assert fetched.background == 0
        assert fetched.prefetch < 100_000, "what containerd itself looks up, before a start"
        assert throttle.bytes < 0.5 * layout.size, "what it asks for, and what lies beside that"
        loaded = Mounter(node.layergate.root).status().loaded_layers
        assert loaded == len(layout.layers), "of each of them files were likely to be missed"
