"""FUSE is asked once for a file that is not here, and for nothing else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests import trees
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.image import RealImage
from tests.integration.lazy import (
    File,
    Requests,
    counting,
    image_files,
    read_layout,
    status,
    until_complete,
    until_prefetched,
    until_started,
)
from tests.integration.node import ON_DEMAND, Node, running_node

pytestmark = pytest.mark.containerd

SMALL = 64 << 10

STAYS = "[lazy]\nmount_seconds = 3600\n"
"""Otherwise the mounter would be retired once all is here, and who is retired is not asked for counters."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A container on the optimized image, of which nothing comes but what is asked for."""

    node: Node
    reference: str
    root: str
    """The container's root, as the host sees it."""
    files: list[File]

    def missing(self) -> File:
        """A small file that nobody has opened yet, in a directory of some depth."""
        return next(
            file
            for file in self.files
            if file.size < SMALL and file.path.startswith("usr/share/") and not file.here
        )


@pytest.fixture(scope="module")
def lazy(file_system: str, image: RealImage, references: References) -> Iterator[Lazy]:
    reference = references.optimized
    with running_node(f"{file_system}/counts", config=ON_DEMAND) as node:
        node.pull(reference)
        until_prefetched(node.layergate)
        files = image_files(node.layergate, read_layout(image.optimized))
        with node.containerd.container(reference, snapshotter=node.name) as container:
            until_started(container)
            yield Lazy(node, reference, container.root, files)


def content(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_walking_the_tree_asks_for_nothing(lazy: Lazy) -> None:
    asked = counting(lazy.node.layergate)
    tree = trees.scan(f"{lazy.root}/", contents=False)
    assert len(tree) > 10_000
    assert {"file", "directory", "symlink", "fifo"} <= {entry.kind for entry in tree.values()}
    assert asked() == Requests()


def test_opening_what_is_here_asks_for_nothing(lazy: Lazy) -> None:
    here = [file for file in lazy.files if file.here]
    assert len(here) > 100
    asked = counting(lazy.node.layergate)
    for file in here:
        assert content(f"{lazy.root}/{file.path}") == content(file.plain)
    assert asked() == Requests()


def test_opening_a_small_file_that_is_not_here_asks_once(lazy: Lazy) -> None:
    file = lazy.missing()
    asked = counting(lazy.node.layergate)
    found = content(f"{lazy.root}/{file.path}")
    first = asked()
    assert (first.lookup_file, first.open, first.read) == (1, 0, 0)
    # Directories on the way aside: the layer, fs, and those that lead to the file.
    assert first.lookup <= 1 + 2 + file.path.count("/")
    assert found == content(file.plain)

    assert content(f"{lazy.root}/{file.path}") == found
    with lazy.node.containerd.container(lazy.reference, snapshotter=lazy.node.name) as other:
        assert content(f"{other.root}/{file.path}") == found
        assert asked() == first


def test_many_openers_of_one_file_fetch_it_once(lazy: Lazy) -> None:
    file = lazy.missing()
    before = status(lazy.node.layergate)
    asked = counting(lazy.node.layergate)
    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(content, [f"{lazy.root}/{file.path}"] * 64))
    assert found == {content(file.plain)}
    assert asked().lookup_file == 1
    assert status(lazy.node.layergate).requests["on_demand"] == before.requests["on_demand"] + 1


def test_a_container_that_ran_all_along_asks_for_nothing_once_all_is_here(
    file_system: str, image: RealImage, references: References
) -> None:
    alone = "[mounter]\nneighbour_bytes = 0\n"
    with running_node(f"{file_system}/along", config=ON_DEMAND + STAYS + alone) as node:
        node.pull(references.optimized)
        with node.containerd.container(references.optimized, snapshotter=node.name) as container:
            root = container.root
            until_prefetched(node.layergate)
            files = image_files(node.layergate, read_layout(image.optimized))
            # Some files are resolved before, some on demand, and most not yet.
            some = [file for file in files if file.here][:50]
            some += [file for file in files if file.size < SMALL and not file.here][:20]
            for file in some:
                content(f"{root}/{file.path}")
            before = status(node.layergate).fuse
            assert before.lookup_file >= 20
            assert before.open == before.read == 0

            node.configure(STAYS)
            until_complete(node.layergate)
            asked = counting(node.layergate)
            for file in files:
                assert content(f"{root}/{file.path}") == content(file.plain), file.path
            assert container.execute("python3", "-c", recipe.WORKLOAD) == recipe.OUTPUT
            assert asked() == Requests()


def test_a_file_too_large_to_wait_for_is_read_through_fuse_until_a_new_mount(
    file_system: str, image: RealImage, references: References
) -> None:
    reference, large = references.optimized, recipe.LARGE_FILE
    config = f"{ON_DEMAND}{STAYS}[mounter]\nlarge_file_seconds = 0.001\n"
    with running_node(f"{file_system}/large", config=config) as node:
        node.pull(reference)
        (file,) = [
            file for file in image_files(node.layergate, read_layout(image.optimized)) if file.path == large
        ]
        with node.containerd.container(reference, snapshotter=node.name) as container:
            root = container.root
            until_started(container)
            asked = counting(node.layergate)
            with open(f"{root}/{large}", "rb") as opened:
                opened.seek(recipe.LARGE_SIZE // 2)
                middle = opened.read(4096)
                assert asked().lookup_file == 1
                assert asked().open == 1
                assert not file.here
                whole = content(f"{root}/{large}")
            assert asked().read > 0
            assert os.path.getsize(file.plain) == recipe.LARGE_SIZE
            with open(file.plain, "rb") as plain:
                plain.seek(recipe.LARGE_SIZE // 2)
                assert plain.read(4096) == middle
            assert content(file.plain) == whole

            node.configure(STAYS)
            until_complete(node.layergate)
            asked = counting(node.layergate)
            with node.containerd.container(reference, snapshotter=node.name) as other:
                assert content(f"{other.root}/{large}") == whole
            assert asked() == Requests()
