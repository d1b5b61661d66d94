"""The cache within serve: what it asks of the others, what it excludes, and what it leaves alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mounter.uses import unused
from snapshotter.cache.plan import Limits
from snapshotter.cache.served import ServedCache
from snapshotter.cache.values import Selection, User, UserKind
from snapshotter.openings import Openings
from tests import trees
from tests.snapshotter.cached import CachedNode

pytestmark = [pytest.mark.root, pytest.mark.anyio]

FOREVER = Limits(max_size=None, min_free=0, keep_unused=None)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Others:
    """Snapshots, lazy part and streams of a serve, and what was asked of them, in order."""

    def __init__(self, node: CachedNode) -> None:
        self._node = node
        self.named: list[tuple[str, str]] = []
        self.expecting: set[str] = set()
        self.asked: list[str] = []
        self.named_at_cleanup: list[tuple[str, str]] | None = None

    async def layer_users(self) -> list[tuple[str, str]]:
        return self.named

    async def cleanup(self) -> None:
        self.asked.append("cleanup")
        if self.named_at_cleanup is not None:
            self.named = self.named_at_cleanup

    async def retain_layers(self) -> bool:
        self.asked.append("retain")
        return True

    def expected(self) -> set[str]:
        return self.expecting

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        self.asked.append("still")
        before = self._node.store.layers()
        yield
        self.asked.append(f"set aside {len(before) - len(self._node.store.layers())}")

    async def drop(self, layers: Collection[str]) -> None:
        assert all(map(self._node.store.exists, layers)), "streams end before their layer goes"
        self.asked.append(f"drop {len(layers)}")


class Serve:
    def __init__(self, path: Path) -> None:
        self.node = CachedNode(path)
        self.others = Others(self.node)
        self.openings = Openings()
        self.cache = ServedCache(
            self.node.store,
            snapshots=self.others,
            layers=self.others,
            work=self.others,
            openings=self.openings,
        )

    async def layer(self, seed: int) -> str:
        return await anyio.to_thread.run_sync(self.node.small, seed)


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    return Serve(tmp_path)


async def test_unused_layers_go_in_order(serve: Serve) -> None:
    used, gone = await serve.layer(1), await serve.layer(2)
    serve.others.named = [(used, "sha256:chain")]
    report = await serve.cache.clean(Selection(), dry_run=False)
    assert [layer.layer for layer in report.removed] == [gone]
    assert report.done
    assert serve.others.asked == ["cleanup", "drop 1", "still", "set aside 1", "still", "set aside 0"]
    assert serve.node.store.layers() == [used]
    assert not [name for name in os.listdir(serve.node.store.layers_directory) if name.startswith(".dead")]


async def test_the_inventory_says_who_uses_what(serve: Serve) -> None:
    named, expected, unused_layer = [await serve.layer(seed) for seed in range(3)]
    serve.others.named = [(named, "sha256:chain"), (named, "k8s.io/1/web")]
    serve.others.expecting = {expected}
    found = {layer.layer: layer.used_by for layer in (await serve.cache.inventory()).layers}
    assert found[named] == [
        User(UserKind.SNAPSHOT, "k8s.io/1/web"),
        User(UserKind.SNAPSHOT, "sha256:chain"),
    ]
    assert [user.kind for user in found[expected]] == [UserKind.PULL]
    assert found[unused_layer] == []
    assert serve.others.asked == []


async def test_a_dry_run_asks_for_nothing_and_changes_nothing(serve: Serve) -> None:
    layer = await serve.layer(1)
    before = trees.scan(serve.node.root)
    report = await serve.cache.clean(Selection(everything=True), dry_run=True)
    assert [one.layer for one in report.removed] == [layer]
    assert serve.others.asked == []
    assert trees.scan(serve.node.root) == before


async def test_what_is_named_between_the_plan_and_the_removal_stays(serve: Serve) -> None:
    layer = await serve.layer(1)

    class Naming(Others):
        async def layer_users(self) -> list[tuple[str, str]]:
            self.asked.append("users")
            return [(layer, "sha256:chain")] if self.asked.count("users") > 1 else []

    others = Naming(serve.node)
    cache = ServedCache(
        serve.node.store, snapshots=others, layers=others, work=others, openings=serve.openings
    )
    report = await cache.clean(Selection(), dry_run=False)
    assert not report.removed
    assert not report.done
    assert report.kept[0].used_by == [User(UserKind.SNAPSHOT, "sha256:chain")]


async def test_a_layer_that_is_being_opened_stays(serve: Serve) -> None:
    layer = await serve.layer(1)
    async with serve.openings.opening(serve.node.store.record(layer).digest):
        report = await serve.cache.clean(Selection(), dry_run=False)
        assert not report.removed
        assert [user.kind for user in report.kept[0].used_by] == [UserKind.PULL]
    assert (await serve.cache.clean(Selection(), dry_run=False)).removed


async def test_an_opening_waits_for_a_removal_and_finds_nothing(serve: Serve) -> None:
    layer = await serve.layer(1)
    digest = serve.node.store.record(layer).digest
    found: list[bool] = []

    class Slow(Others):
        async def drop(self, layers: Collection[str]) -> None:
            tasks.start_soon(open_it)
            await anyio.wait_all_tasks_blocked()
            assert not found

    async def open_it() -> None:
        async with serve.openings.opening(digest):
            found.append(serve.node.store.exists(layer))

    others = Slow(serve.node)
    cache = ServedCache(
        serve.node.store, snapshots=others, layers=others, work=others, openings=serve.openings
    )
    async with anyio.create_task_group() as tasks:
        await cache.clean(Selection(), dry_run=False)
    assert found == [False]


async def test_who_is_about_to_mount_a_layer_keeps_it(serve: Serve) -> None:
    layer = await serve.layer(1)
    with unused(serve.node.root, layer) as free:
        assert free
        assert not (await serve.cache.clean(Selection(), dry_run=False)).removed
    assert (await serve.cache.clean(Selection(), dry_run=False)).removed


async def test_keeping_notes_the_use_and_drops_what_is_old(serve: Serve) -> None:
    used, old, young = [await serve.layer(seed) for seed in range(3)]
    for layer, age in ((used, 5000), (old, 5000), (young, 500)):
        serve.node.age(layer, age)
    serve.others.named = [(used, "sha256:chain")]
    plan = await serve.cache.keep(Limits(max_size=None, min_free=0, keep_unused=1000), free=0)
    assert [layer.layer for layer in plan.remove] == [old]
    assert sorted(serve.node.store.layers()) == sorted([used, young])
    serve.others.named = []
    plan = await serve.cache.keep(Limits(max_size=None, min_free=0, keep_unused=1000), free=0)
    assert not plan.remove, "the one that was in use counts from then on"
    assert serve.others.asked.count("retain") == 2


async def test_keeping_within_a_size_takes_the_least_recently_used(serve: Serve) -> None:
    layers = [await serve.layer(seed) for seed in range(4)]
    for age, layer in enumerate(layers):
        serve.node.age(layer, 1000 - age)
    size = next(one.bytes for one in (await serve.cache.inventory()).layers)
    plan = await serve.cache.keep(Limits(max_size=2 * size, min_free=0, keep_unused=None), free=0)
    assert [layer.layer for layer in plan.remove] == layers[:2]
    assert not plan.excess
    plan = await serve.cache.keep(Limits(max_size=None, min_free=size, keep_unused=None), free=0)
    assert [layer.layer for layer in plan.remove] == layers[2:3]


async def test_without_a_reason_nothing_goes(serve: Serve) -> None:
    layer = await serve.layer(1)
    serve.node.age(layer, 1e6)
    assert not (await serve.cache.keep(FOREVER, free=0)).remove
    assert serve.node.store.layers() == [layer]


async def test_a_layer_that_comes_again_is_counted_anew(serve: Serve) -> None:
    layer = await serve.layer(1)
    [first] = (await serve.cache.inventory()).layers
    await serve.cache.clean(Selection(), dry_run=False)
    again = await anyio.to_thread.run_sync(lambda: serve.node.small(1, complete=False))
    assert again == layer
    [second] = (await serve.cache.inventory()).layers
    assert second.bytes < first.bytes


async def test_leftovers_go_with_a_cleaning_but_not_what_serve_looks_after(serve: Serve) -> None:
    dead = Path(serve.node.store.layers_directory, ".dead-x")
    dead.mkdir()
    lower = Path(serve.node.root, "snapshots", "77")
    lower.mkdir(parents=True)
    report = await serve.cache.clean(Selection(), dry_run=False)
    assert [leftover.path for leftover in report.leftovers] == [str(dead)]
    assert not dead.exists()
    assert lower.exists()


async def test_what_the_cleanup_lets_go_is_unused_at_once(serve: Serve) -> None:
    layer = await serve.layer(1)
    serve.others.named = [(layer, "sha256:chain")]
    serve.others.named_at_cleanup = []
    assert (await serve.cache.clean(Selection(), dry_run=False)).removed
