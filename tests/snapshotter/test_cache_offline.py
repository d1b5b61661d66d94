"""The cache without serve: what is here, what goes, what crashes left."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from fetcher.store import LayerStore
from mounter.lowers import Meta, lazy_lowers, mount_lazy_lower
from mounter.meta import MetaForm, ensure_meta, metas
from mounter.mountinfo import mounts_below
from mounter.swap import mounts_on
from mounter.syscalls import detach, mount_overlay, mount_tmpfs
from mounter.uses import Uses
from snapshotter.cache import leftovers as kinds
from snapshotter.cache.offline import OfflineCache
from snapshotter.cache.values import LayerState, Selection, User, UserKind
from snapshotter.errors import MetadataInUse
from snapshotter.manual.release import unmount_manual
from snapshotter.manual.state import ManualMounts, MountedLayer, MountState, mount_namespace
from snapshotter.metadata import Kind, Metadata
from snapshotter.processes import Process
from tests import trees
from tests.snapshotter.cached import CachedNode

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path: Path) -> CachedNode:
    return CachedNode(tmp_path)


@pytest.fixture
def cache(node: CachedNode) -> OfflineCache:
    return OfflineCache(node.root)


def name_layer(node: CachedNode, layer: str, name: str, *, active: str | None = None) -> None:
    with Metadata(os.path.join(node.root, "metadata.db")) as metadata, metadata.transaction():
        parent = metadata.insert(name, kind=Kind.COMMITTED, parent=None, labels={}, now_ns=1, layer=layer)
        if active is not None:
            metadata.insert(active, kind=Kind.ACTIVE, parent=parent, labels={}, now_ns=1)


def unname(node: CachedNode, name: str) -> None:
    with Metadata(os.path.join(node.root, "metadata.db")) as metadata, metadata.transaction():
        metadata.delete(metadata.get(name))


def test_what_is_here(node: CachedNode, cache: OfflineCache) -> None:
    complete = node.small(1, image="registry.test/one:1")
    incomplete = node.small(2, complete=False)
    damaged = node.small(3)
    Path(node.store.directory(damaged), "layer.json").write_text("{")
    name_layer(node, complete, "sha256:chain", active="k8s.io/2/web")
    found = {layer.layer: layer for layer in cache.inventory().layers}
    assert found.keys() == {complete, incomplete, damaged}
    assert found[complete].state is LayerState.COMPLETE
    assert found[complete].digest == node.store.record(complete).digest
    assert found[complete].images == ["registry.test/one:1"]
    assert found[complete].used_by == [
        User(UserKind.SNAPSHOT, "k8s.io/2/web"),
        User(UserKind.SNAPSHOT, "sha256:chain"),
    ]
    assert found[incomplete].state is LayerState.INCOMPLETE
    assert found[damaged].state is LayerState.DAMAGED
    assert found[damaged].digest == ""
    assert found[complete].bytes > found[incomplete].bytes > 0


def test_the_size_is_what_du_says(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    counted = subprocess.run(
        ["du", "-s", "--block-size=1", node.store.directory(layer)],
        check=True,
        capture_output=True,
        text=True,
    )
    [found] = cache.inventory().layers
    assert found.bytes == int(counted.stdout.split()[0])


def test_unused_layers_go_and_the_disk_is_as_before(node: CachedNode, cache: OfflineCache) -> None:
    kept = node.small(1)
    name_layer(node, kept, "sha256:chain")
    before = trees.scan(node.store.layers_directory)
    gone = node.small(2)
    Path(node.root, "late", gone, "fs").mkdir(parents=True)
    os.link(os.path.join(node.store.fs(gone), "usr/file1"), os.path.join(node.root, "late", gone, "fs/x"))
    report = cache.clean(Selection(), dry_run=False)
    assert [layer.layer for layer in report.removed] == [gone]
    assert report.done
    assert not report.kept
    after = trees.scan(node.store.layers_directory)
    assert not trees.difference(before, after, directory_mtimes=False)
    assert os.listdir(os.path.join(node.root, "late")) == []


def test_what_a_snapshot_needs_stays_and_is_said(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    name_layer(node, layer, "sha256:chain")
    report = cache.clean(Selection(everything=True), dry_run=False)
    assert not report.done
    assert not report.removed
    assert report.kept[0].used_by == [User(UserKind.SNAPSHOT, "sha256:chain")]
    unname(node, "sha256:chain")
    assert cache.clean(Selection(everything=True), dry_run=False).done
    assert node.store.layers() == []


def test_what_a_mount_needs_stays(node: CachedNode, cache: OfflineCache, tmp_path: Path) -> None:
    layer = node.small(1)
    target = tmp_path / "mounted"
    target.mkdir()
    mount_overlay(str(target), lower=[node.store.fs(layer), str(target)], options={}, read_only=True)
    try:
        report = cache.clean(Selection(layers=[layer]), dry_run=False)
        assert not report.done
        assert report.kept[0].used_by == [User(UserKind.MOUNT, str(target))]
        assert (target / "usr/file1").read_bytes() == bytes([1, 1]) * 1500
    finally:
        detach(str(target))
    assert cache.clean(Selection(layers=[layer]), dry_run=False).done


def test_what_a_process_uses_stays(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    uses = Uses(node.root)
    uses.add(layer)
    report = cache.clean(Selection(), dry_run=False)
    assert not report.done
    assert report.kept[0].used_by[0].kind is UserKind.PROCESS
    uses.close()
    with node.store.lock(layer):
        assert not cache.clean(Selection(), dry_run=False).done
    assert cache.clean(Selection(), dry_run=False).done
    assert node.store.layers() == []


def test_a_manual_mount_being_made_needs_its_layers(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    mounts = ManualMounts(node.root)
    mounts.create_directories()
    state = manual_state(node.store, layer, Process.current())
    mounts.write(state)
    assert not cache.clean(Selection(), dry_run=False).removed
    assert cache.inventory().layers[0].used_by == [User(UserKind.MOUNT, "/mnt/manual")]
    mounts.write(msgspec.structs.replace(state, keeper=Process(2**22 - 1, 1)))
    report = cache.clean(Selection(), dry_run=False)
    assert [layer.layer for layer in report.removed] == [layer]
    assert [leftover.kind for leftover in report.leftovers] == [kinds.MANUAL]
    assert mounts.all() == []


def test_the_layers_of_a_mount_whose_keeper_was_killed_go_with_it(
    node: CachedNode, cache: OfflineCache, tmp_path: Path
) -> None:
    layer = node.small(1)
    mounts = ManualMounts(node.root)
    mounts.create_directories()
    target = tmp_path.resolve() / "target"
    target.mkdir()
    mount_tmpfs(str(target), options={})
    try:
        state = msgspec.structs.replace(
            manual_state(node.store, layer, Process(2**22 - 1, 1)),
            mountpoint=str(target),
            mounts=[mounts_on(str(target))[0].id],
        )
        mounts.write(state)
        for selection in (Selection(older_than=0), Selection(layers=[layer]), Selection(to_size=0)):
            assert cache.clean(selection, dry_run=False).orphaned == [str(target)]
        cache.clean(Selection(), dry_run=True)
        assert mounts.all() == [state], "it is cleaned of nothing"
        assert unmount_manual(node.root, str(target), lazy=False) == []
        mount_tmpfs(str(target), options={})
        mounts.write(msgspec.structs.replace(state, mounts=[mounts_on(str(target))[0].id]))
        report = cache.clean(Selection(), dry_run=False)
        assert (report.removed, report.leftovers, report.done) == ([], [], True)
        assert [state.discard for state in mounts.all()] == [True]
        assert unmount_manual(node.root, str(target), lazy=False) == [layer]
        assert mounts_on(str(target)) == []
    finally:
        for _ in mounts_on(str(target)):
            detach(str(target))


def manual_state(store: LayerStore, layer: str, keeper: Process) -> MountState:
    return MountState(
        id="one",
        mountpoint="/mnt/manual",
        source="registry.test/one:1",
        alone=True,
        rw=None,
        made_rw=False,
        keeper=keeper,
        namespace=mount_namespace(),
        boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        since=0.0,
        layers=[MountedLayer(layer, store.record(layer).digest)],
    )


def test_while_somebody_has_the_database_nothing_is_done(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    with Metadata(os.path.join(node.root, "metadata.db")):
        with pytest.raises(MetadataInUse):
            cache.clean(Selection(), dry_run=False)
        with pytest.raises(MetadataInUse):
            cache.inventory()
    assert node.store.layers() == [layer]


def crashed(node: CachedNode) -> dict[str, str]:
    """Make everything that a crash can leave; its kinds by path."""
    store, root = node.store, node.root
    layer = node.small(9)
    name_layer(node, layer, "sha256:chain")
    made: dict[str, str] = {}
    for name, kind in ((".dead-x", kinds.DEAD_LAYER), (".new-x", kinds.NEW_LAYER)):
        shutil.copytree(store.directory(layer), os.path.join(store.layers_directory, name), symlinks=True)
        made[os.path.join(store.layers_directory, name)] = kind
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for path in (
        os.path.join(store.directory(layer), f"layer.json.{ended.pid}.tmp"),
        os.path.join(root, "lazy", f"{'a' * 20}.json.01234567"),
    ):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text("half")
        made[path] = kinds.TEMPORARY
    repair = os.path.join(store.directory(layer), "repair", "fs")
    os.makedirs(repair)
    made[os.path.dirname(repair)] = kinds.REPAIR
    late = os.path.join(root, "late", layer)
    os.makedirs(f"{late}/fs")
    os.link(os.path.join(store.fs(layer), "usr/file1"), f"{late}/fs/x")
    made[late] = kinds.LATE
    orphan = os.path.join(root, "snapshots", "77", "fs")
    os.makedirs(orphan)
    made[os.path.dirname(orphan)] = kinds.SNAPSHOT
    os.mkdir(os.path.join(root, "gate"))
    ensure_meta(root, layer, store.tree(layer), MetaForm.EROFS)
    made[os.path.join(root, "meta", layer)] = kinds.META
    lower = mount_lazy_lower(root, [Meta(layer)], "generation")
    made[lower] = kinds.LAZY
    room = os.path.join(root, "lazy", f"{'b' * 20}.room")
    os.mkdir(room)
    mount_tmpfs(room, options={})
    made[room] = kinds.ROOM
    return made


def test_what_crashes_leave_is_found_and_removed(node: CachedNode, cache: OfflineCache) -> None:
    intact = node.small(1)
    name_layer(node, intact, "sha256:intact")
    before = trees.scan(node.store.directory(intact))
    try:
        made = crashed(node)
        listed = {leftover.path: leftover.kind for leftover in cache.inventory().leftovers}
        assert listed == made
        dry = cache.clean(Selection(), dry_run=True)
        assert {leftover.path for leftover in dry.leftovers} == made.keys()
        assert all(os.path.lexists(path) for path in made)
        report = cache.clean(Selection(), dry_run=False)
        assert {leftover.path: leftover.kind for leftover in report.leftovers} == made
        assert not report.problems
        assert report.done
        assert not [path for path in made if os.path.lexists(path)]
        assert cache.inventory().leftovers == []
        assert lazy_lowers(node.root) == []
        assert metas(node.root) == []
        assert mounts_below(node.root) == []
        assert not trees.difference(before, trees.scan(node.store.directory(intact)))
    finally:
        for mount in reversed(mounts_below(node.root)):
            detach(mount.target)


def test_what_is_being_worked_on_is_no_leftover(node: CachedNode, cache: OfflineCache) -> None:
    layer = node.small(1)
    name_layer(node, layer, "sha256:chain")
    mine = Path(node.store.directory(layer), f"layer.json.{os.getpid()}.tmp")
    mine.write_text("half")
    repair = Path(node.store.directory(layer), "repair")
    repair.mkdir()
    ensure_meta(node.root, layer, node.store.tree(layer), MetaForm.EROFS)
    uses = Uses(node.root)
    try:
        uses.add(layer)
        with node.store.lock(layer):
            assert cache.inventory().leftovers == []
            assert cache.clean(Selection(), dry_run=False).leftovers == []
        assert mine.exists()
        assert repair.exists()
        assert metas(node.root) == [layer]
    finally:
        uses.close()
        for mount in mounts_below(node.root):
            detach(mount.target)


def test_a_lazy_lower_that_a_mount_stands_on_is_no_leftover(
    node: CachedNode, cache: OfflineCache, tmp_path: Path
) -> None:
    layer = node.small(1)
    for name in ("gate", "late"):
        os.mkdir(os.path.join(node.root, name))
    (tmp_path / "container").mkdir()
    try:
        ensure_meta(node.root, layer, node.store.tree(layer), MetaForm.EROFS)
        lower = mount_lazy_lower(node.root, [Meta(layer)], "generation")
        mount_overlay(
            str(tmp_path / "container"),
            lower=[lower, str(tmp_path / "container")],
            options={},
            read_only=True,
        )
        report = cache.clean(Selection(everything=True), dry_run=False)
        assert not report.removed
        assert report.leftovers == []
        assert report.kept[0].used_by == [User(UserKind.MOUNT, str(tmp_path / "container"))]
        detach(str(tmp_path / "container"))
        report = cache.clean(Selection(everything=True), dry_run=False)
        assert [one.layer for one in report.removed] == [layer]
        assert {leftover.kind for leftover in report.leftovers} == {kinds.LAZY, kinds.META}
        assert mounts_below(node.root) == []
    finally:
        for mount in reversed(mounts_below(str(tmp_path))):
            detach(mount.target)


def test_a_dry_run_says_the_same_and_changes_nothing(node: CachedNode, cache: OfflineCache) -> None:
    used = node.small(1)
    name_layer(node, used, "sha256:chain")
    for seed in (2, 3):
        node.age(node.small(seed), seed * 100)
    os.mkdir(os.path.join(node.store.layers_directory, ".dead-x"))
    for selection in (
        Selection(),
        Selection(everything=True),
        Selection(older_than=250),
        Selection(to_size=0),
    ):
        before = scan_all(node.root)
        dry = cache.clean(selection, dry_run=True)
        assert scan_all(node.root) == before
        assert dry.dry_run
        assert dry.freed_bytes == 0
    wet = cache.clean(Selection(to_size=0), dry_run=False)
    assert (wet.removed, wet.kept, wet.leftovers, wet.bytes_left, wet.done) == (
        dry.removed,
        dry.kept,
        dry.leftovers,
        dry.bytes_left,
        dry.done,
    )


def scan_all(root: str) -> dict[str, trees.Entry]:
    """Everything but the database, whose times SQLite moves when it is read, and the root's own times."""
    return {
        path: entry
        for path, entry in trees.scan(root).items()
        if not path.startswith("metadata.db") and path != trees.ROOT
    }


def test_layers_made_while_others_are_removed_stay(node: CachedNode, cache: OfflineCache) -> None:
    """Two threads; each new layer is used from before it exists, as a pull does it."""
    stop = threading.Event()
    uses = Uses(node.root)
    seen: list[str] = []

    def clean() -> None:
        while not stop.is_set():
            cache.clean(Selection(everything=True), dry_run=False)

    cleaning = threading.Thread(target=clean)
    cleaning.start()
    try:
        for seed in range(10):
            name = node.small(seed, complete=False)
            uses.add(name)
            if node.store.exists(name):
                assert node.store.tree(name).nodes
                seen.append(name)
    finally:
        stop.set()
        cleaning.join()
    assert set(node.store.layers()) == set(seen)
    uses.close()
