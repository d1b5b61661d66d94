"""A container that reads files over and over, and keeps a record of what went wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from tests.integration.harness import Container
from tests.integration.lazy import until
from tests.integration.node import Node

_LOOP: Final = """
import hashlib, os, time
def files():
    for top in {tops!r}:
        if os.path.isfile(top):
            yield top
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    yield path
paths = sorted(files())
known = {{}}
rounds = 0
errors = open("/errors", "a", buffering=1)
while True:
    for path in paths:
        try:
            with open(path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError as error:
            errors.write(f"round {{rounds}}: {{error}}\\n")
        else:
            if known.setdefault(path, digest) != digest:
                errors.write(f"round {{rounds}}: {{path}} has changed\\n")
    rounds += 1
    with open("/rounds.new", "w") as file:
        file.write(f"{{rounds}} {{len(known)}}")
    os.rename("/rounds.new", "/rounds")
    time.sleep(0.1)
"""


class Reader:
    """What such a container says of itself."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.root = container.root

    @property
    def rounds(self) -> int:
        """How often it has read all its files."""
        try:
            with open(f"{self.root}/rounds", encoding="utf-8") as file:
                return int(file.read().split()[0])
        except FileNotFoundError:
            return 0

    @property
    def files(self) -> int:
        """How many files it could read at least once, as of its last round."""
        with open(f"{self.root}/rounds", encoding="utf-8") as file:
            return int(file.read().split()[1])

    @property
    def errors(self) -> str:
        """A line for each read that failed or gave other bytes than before."""
        with open(f"{self.root}/errors", encoding="utf-8") as file:
            return file.read()

    def until_another_round(self) -> None:
        """Wait until it has read everything once from beginning to end."""
        begun = self.rounds
        until(lambda: self.rounds >= begun + 2, "another round of reading")


@contextlib.contextmanager
def reading(node: Node, reference: str, *tops: str) -> Iterator[Reader]:
    """A container of an image with Python that reads these files, and all below these directories."""
    program = ["python3", "-c", _LOOP.format(tops=tops)]
    with node.containerd.container(reference, program, snapshotter=node.name) as container:
        yield Reader(container)
