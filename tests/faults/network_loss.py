"""The registry's network is gone for a while: nothing is refused, nothing is answered. Then it is back.

    python -m scripts.namespaces --network tests.faults.network_loss --rounds 1 --seed 1

Prints what was seen, as JSON. docker-registry stands in a network namespace behind a link, which is cut.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from dataclasses import asdict
from typing import Final

import click

from scripts.benchmark.link import PROFILES, Link
from scripts.benchmark.registry import FarRegistry
from scripts.namespaces import raise_on_termination
from tests import oci
from tests.estargz import Layer
from tests.faults.world import Reader, Seen, make_image
from tests.integration.caching import programs
from tests.integration.harness import fresh_file_system
from tests.integration.node import Node, eventually, running_node

_CONFIG: Final = "[stream]\nbytes_per_second = 2000000\n[mounter]\nwait_seconds = 3.0\nneighbour_bytes = 0\n"
_MOMENT: Final = 2.0
_LASTS: Final = 20.0
"""Longer than any one wait for an answer."""


def lose_once(node: Node, link: Link, registry: FarRegistry, base: Layer, seed: str, seen: Seen) -> None:
    """An image streams when its registry's network goes; what is here is read on, and then it completes."""
    rng = random.Random(seed)
    image = make_image(base, rng.randrange(1 << 60))
    reference = oci.push(registry.host, f"network/{seen.rounds}", image.image)
    node.pull(reference, "--plain-http")
    seen.rounds += 1
    with node.containerd.container(reference, ["/bin/sleep", "infinity"], snapshotter=node.name) as container:
        seen.containers += 1
        with Reader(container.root, image, seen, seed) as reader:
            time.sleep(rng.uniform(0, _MOMENT))
            with link.cut():
                time.sleep(rng.uniform(1, _LASTS))
            eventually(lambda: reader.read_all() == [], "files after the network is back", patience=90)
            node.until_complete(image.image)
            # From now on nothing is missing, and nothing may fail.
            reader.here |= set(image.files)
            for _ in range(2):
                assert reader.read_all() == []
            reader.check()


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--seed", type=int, required=True)
def main(rounds: int, seed: int) -> None:
    """Lose the network again and again; what was seen is printed as JSON."""
    raise_on_termination()
    seen = Seen()
    base = programs()
    with (
        tempfile.TemporaryDirectory(prefix="layergate-") as short,
        fresh_file_system(f"{short}/d", size=2 << 30) as disk,
        Link(PROFILES["1g"], short) as link,
        FarRegistry(link, short) as registry,
        running_node(disk, config=_CONFIG) as node,
    ):
        for number in range(rounds):
            lose_once(node, link, registry, base, f"{seed} {number}", seen)
    click.echo(json.dumps(asdict(seen)))


if __name__ == "__main__":
    main()
