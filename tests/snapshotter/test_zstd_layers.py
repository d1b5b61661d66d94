"""zstd:chunked layers: which may be lazy, promises out of the image's manifest, verifying, repairing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from fetcher.settings import RegistrySettings
from fetcher.sources import BlobSources
from fetcher.store import LayerStore
from snapshotter.cache.verify import verify_layers
from snapshotter.cli.cache_verify import verified
from snapshotter.config import Config
from snapshotter.containerd.labels import may_be_lazy
from snapshotter.images import Images
from snapshotter.remote import RemoteLayer
from tests import oci
from tests.estargz import build, file, plain
from tests.faulty_registry import FaultyRegistry
from tests.registry_faults import Status
from tests.snapshotter.cached import CachedNode, entries
from tests.zstd_chunked import Variant, build_zstd

LAYERS = [
    build([file("a", b"estargz")]),
    build_zstd([file("b", b"stargz's")], Variant.STARGZ),
    build_zstd([file("c", b"containers'")], Variant.CONTAINERS),
    build_zstd([file("d", b"containers' first")], Variant.FIRST_CONTAINERS),
    plain([file("e", b"ordinary")]),
]
IMAGE = oci.image(LAYERS)


# What a pull expects


def test_layers_that_may_be_lazy() -> None:
    assert [may_be_lazy(layer.annotations) for layer in LAYERS] == [True, True, True, True, False]
    assert not may_be_lazy({"io.containers.zstd-chunked.manifest-position": "1:2:3:1"})


# Promises that are no labels


@pytest.fixture
def registry() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        registry.add_image("team/app", IMAGE)
        yield registry


@asynccontextmanager
async def opening(root: Path) -> AsyncIterator[Images]:
    """An `Images` whose registry client tries everything once."""
    settings = RegistrySettings(retry_limit=0, docker_config=str(root / "config.json"))
    async with BlobSources(settings) as sources, anyio.create_task_group() as tasks:
        yield Images(LayerStore(str(root)), sources, tasks, opened=lambda layer: None)
        tasks.cancel_scope.cancel()


def wanted(registry: FaultyRegistry, number: int) -> RemoteLayer:
    """A layer as labels without its TOC digest describe it."""
    return RemoteLayer(f"{registry.host}/team/app:latest", LAYERS[number].digest, None, IMAGE.digest)


@pytest.mark.anyio
async def test_promises_come_from_the_manifest_by_its_digest(
    registry: FaultyRegistry, tmp_path: Path
) -> None:
    async with opening(tmp_path) as images:
        found = [(await images.completed(wanted(registry, number))).toc_digest for number in range(5)]
    assert found == [*(layer.toc_digest for layer in LAYERS[:4]), None]
    assert registry.requests["manifest"] == 1
    assert all(IMAGE.digest in path for kind, _, path, _ in registry.log if kind == "manifest")


@pytest.mark.anyio
async def test_an_announced_manifest_is_not_asked_for(registry: FaultyRegistry, tmp_path: Path) -> None:
    async with opening(tmp_path) as images:
        assert images.open_image(f"{registry.host}/team/app:latest", IMAGE.manifest, plain_http=False) == 4
        found = await images.completed(wanted(registry, 2))
    assert found.toc_digest == LAYERS[2].toc_digest
    assert registry.requests["manifest"] == 0


@pytest.mark.anyio
async def test_what_labels_say_stands_and_a_tag_alone_promises_nothing(
    registry: FaultyRegistry, tmp_path: Path
) -> None:
    async with opening(tmp_path) as images:
        labelled = replace(wanted(registry, 2), toc_digest="sha256:" + "0" * 64)
        assert await images.completed(labelled) is labelled
        tagged = replace(wanted(registry, 2), manifest_digest=None)
        assert await images.completed(tagged) is tagged
        foreign = replace(wanted(registry, 2), digest="sha256:" + "0" * 64)
        assert await images.completed(foreign) is foreign
    assert registry.requests["manifest"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize("status", [404, 401, 503])
async def test_a_manifest_that_cannot_be_had_is_asked_for_once(
    registry: FaultyRegistry, tmp_path: Path, status: int
) -> None:
    registry.fail("manifest", Status(status))
    async with opening(tmp_path) as images:
        for number in range(5):
            assert (await images.completed(wanted(registry, number))).toc_digest is None
        assert registry.requests["manifest"] == 1


# The cache


@pytest.mark.parametrize("variant", Variant)
def test_layers_are_verified_and_repaired(tmp_path: Path, variant: Variant) -> None:
    node = CachedNode(tmp_path)
    key = node.add(build_zstd(entries(), variant), "registry.test/image:1")
    [verdict] = verify_layers(node.store, [key], _silent)
    assert verdict.intact
    damaged = Path(node.store.fs(key), "usr/file1")
    content = damaged.read_bytes()
    damaged.write_bytes(b"x" + content[1:])
    [verdict] = verified(node.store, [key], Config(), repair=True, progress=_silent)
    assert verdict.repaired
    assert damaged.read_bytes() == content


@pytest.mark.parametrize("variant", Variant)
def test_a_damaged_table_of_contents_is_fetched_again(tmp_path: Path, variant: Variant) -> None:
    node = CachedNode(tmp_path)
    key = node.add(build_zstd(entries(), variant), "registry.test/image:1")
    kept = Path(node.store.directory(key), "toc.json")
    right = kept.read_bytes()
    kept.write_bytes(right[:-1])
    [verdict] = verify_layers(node.store, [key], _silent)
    assert not verdict.intact
    [verdict] = verified(node.store, [key], Config(), repair=True, progress=_silent)
    assert verdict.intact
    assert kept.read_bytes() == right


def _silent(_done: int, _total: int) -> None:
    """No progress."""
