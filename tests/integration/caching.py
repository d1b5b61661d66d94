"""What the tests of the cache share: images of chosen sizes, disk use, and the commands' JSON."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests import oci
from tests.estargz import Entry, Layer, build, dir, file, landmark
from tests.integration.harness import CommandFailed, Layergate
from tests.integration.node import Node, eventually, program_files

PROGRAMS = ("sh", "cat", "sleep", "sha256sum", "true")
READ_ALL = ("/bin/sh", "-c", "/bin/cat /data/* | /bin/sha256sum")
"""A container that prints one digest over all data files, in the order of their names."""


def programs() -> Layer:
    """A layer with what the containers run, all of it prefetched."""
    return build([*program_files(*PROGRAMS), landmark()])


def data(seed: int, *, files: int, size: int) -> list[Entry]:
    """Files that do not compress, different ones for each seed."""
    noise = random.Random(seed)
    return [
        dir("data/"),
        *(file(f"data/{seed}-{number:03}", noise.randbytes(size)) for number in range(files)),
    ]


def digest_of(entries: Sequence[Entry]) -> str:
    """What READ_ALL prints in a container that has these data files."""
    import hashlib

    files = sorted((entry.name, entry.content) for entry in entries if entry.content)
    return hashlib.sha256(b"".join(content for _, content in files)).hexdigest()


@dataclass(frozen=True, slots=True)
class DataImage:
    """An image of programs and data; `reads` is what READ_ALL prints in it."""

    image: oci.Image
    reads: str

    @property
    def check(self) -> tuple[str, ...]:
        """A container that fails unless READ_ALL prints that in it."""
        return ("/bin/sh", "-c", f'test "$({READ_ALL[-1]})" = "{self.reads.strip()}"')

    @classmethod
    def of(cls, base: Layer, *layers: list[Entry]) -> DataImage:
        """The image with these data layers on `base`."""
        image = oci.image([base, *(build(layer) for layer in layers)])
        return cls(image, f"{digest_of([entry for layer in layers for entry in layer])}  -\n")


def cache(layergate: Layergate, *arguments: str) -> dict[str, object]:
    """What `layergate cache ARGUMENTS --json` says, whatever its exit code."""
    options = ["--root", layergate.root]
    if arguments[0] != "verify":
        options += ["--address", layergate.socket]
    try:
        text = layergate.command("cache", *arguments, "--json", *options)
    except CommandFailed as failure:
        text = failure.output.splitlines()[0]
    found: dict[str, object] = json.loads(text)
    return found


def used_by(layergate: Layergate) -> dict[str, list[dict[str, str]]]:
    """The users of each layer by its digest."""
    layers = cache(layergate, "ls")["layers"]
    assert isinstance(layers, list)
    return {layer["digest"]: layer["used_by"] for layer in layers}


def remove_image(node: Node, reference: str) -> None:
    """Remove an image, and wait until containerd's garbage collection has let its layers go."""
    node.containerd.ctr("images", "rm", "--sync", reference)
    left = [reference]

    def gone() -> bool:
        left[:] = [name for users in used_by(node.layergate).values() for name in map(str, users)]
        return not left

    eventually(gone, f"the layers of {reference} to fall out of use")


def layer_directories(layergate: Layergate) -> list[str]:
    """All that lies in ROOT/layers."""
    return sorted(os.listdir(os.path.join(layergate.root, "layers")))
