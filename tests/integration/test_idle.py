"""A node that has everything: what served lazy layers goes, though nobody asks serve for anything."""

from __future__ import annotations

import pytest

from tests import oci
from tests.estargz import build, dir, file
from tests.integration.harness import Registry, mounts
from tests.integration.node import eventually, program_files, running_node

pytestmark = pytest.mark.containerd


def test_meta_and_mounter_go_when_the_last_layer_is_on_disk(registry: Registry, directory: str) -> None:
    files = [file(f"srv/{number}", b"%d" % number * 500) for number in range(3000)]
    image = oci.image([build(program_files("cat")), build([dir("srv/"), *files])])
    reference = oci.push(registry.host, "idle/image", image)
    with running_node(directory, config="[lazy]\nmount_seconds = 1\n") as node:
        node.pull(reference)
        assert node.run(reference, ["/bin/cat", "/srv/7"]) == "7" * 500
        eventually(lambda: mounts(node.layergate.root) == [], "META and the gate to go by themselves")
