"""containerd's conformance suite for snapshotters, case by case, over gRPC with real mounts.

The cases are those of containerd's core/snapshots/testsuite; each says what
the snapshotter promises, not how. A case that works on files applies the same
changes to a plain directory and compares what a mount shows with it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import pytest

from tests.snapshotter.snapshots_client import Info, SnapshotsClient, failure, mount_all, mounted, unmount
from tests.trees import ROOT, difference, scan

pytestmark = pytest.mark.root

Change = Callable[[str], None]
"""Changes a tree, given its root directory."""


def file(path: str, content: str, mode: int) -> Change:
    def change(root: str) -> None:
        full = os.path.join(root, path)
        with open(full, "w") as out:
            out.write(content)
        os.chmod(full, mode)

    return change


def directory(path: str, mode: int) -> Change:
    def change(root: str) -> None:
        full = os.path.join(root, path)
        os.mkdir(full)
        os.chmod(full, mode)

    return change


def removed(path: str) -> Change:
    def change(root: str) -> None:
        full = os.path.join(root, path)
        if os.path.isdir(full):
            shutil.rmtree(full)
        else:
            os.unlink(full)

    return change


def owned(path: str, uid: int, gid: int) -> Change:
    return lambda root: os.chown(os.path.join(root, path), uid, gid)


def linked(old: str, new: str) -> Change:
    return lambda root: os.link(os.path.join(root, old), os.path.join(root, new))


def renamed(old: str, new: str) -> Change:
    return lambda root: os.rename(os.path.join(root, old), os.path.join(root, new))


def apply(changes: Sequence[Change], root: str) -> None:
    for change in changes:
        change(root)


def differences(left: str, right: str) -> list[str]:
    """Compare two trees but for times, and for the root directory itself, as containerd does."""
    trees = [
        {path: dataclasses.replace(entry, mtime=0) for path, entry in scan(top).items() if path != ROOT}
        for top in (left, right)
    ]
    return difference(trees[0], trees[1])


def check_layers(client: SnapshotsClient, work: Path, *layers: Sequence[Change], tag: str = "") -> None:
    """Commit one snapshot a layer; a view of each must equal the plain directory so far."""
    flat = work / f"flat{tag}"
    flat.mkdir()
    parent = ""
    for number, changes in enumerate(layers):
        name = f"layer{tag}-{number}"
        with mounted(client.prepare(f"{name}-active", parent), str(work / f"{name}-prepare")) as target:
            apply(changes, target)
        client.commit(name, f"{name}-active")
        apply(changes, str(flat))
        with mounted(client.view(f"{name}-view", name), str(work / f"{name}-check")) as target:
            assert differences(str(flat), target) == []
        client.remove(f"{name}-view")
        parent = name


def prepare_mounted(client: SnapshotsClient, work: Path, key: str, parent: str = "") -> str:
    target = work / key
    target.mkdir()
    mount_all(client.prepare(key, parent), str(target))
    return str(target)


def base_snapshots(client: SnapshotsClient, prefix: str = "") -> None:
    client.prepare(f"{prefix}c1-a")
    client.commit(f"{prefix}c1", f"{prefix}c1-a")
    client.prepare(f"{prefix}c2-a", f"{prefix}c1")
    client.commit(f"{prefix}c2", f"{prefix}c2-a")
    client.prepare(f"{prefix}a1", f"{prefix}c2")
    client.prepare(f"{prefix}a2")
    client.view(f"{prefix}v1", f"{prefix}c2")
    client.view(f"{prefix}v2")


def test_basic(client: SnapshotsClient, work: Path) -> None:
    first = [
        file("foo", "foo\n", 0o777),
        directory("a", 0o755),
        directory("a/b", 0o755),
        directory("a/b/c", 0o755),
    ]
    then = [file("bar", "bar\n", 0o777), file("foo", "bar\n", 0o777), removed("a/b")]
    flat = work / "flat"
    flat.mkdir()

    with mounted(client.prepare("preparing"), str(work / "preparing")) as target:
        apply(first, target)
    client.commit("committed", "preparing")
    committed = client.stat("committed")
    assert (committed.parent, committed.kind) == ("", "COMMITTED")
    assert failure(lambda: client.stat("preparing"))[0] is grpc.StatusCode.NOT_FOUND

    apply(first, str(flat))
    with mounted(client.prepare("next", "committed"), str(work / "next")) as target:
        assert differences(str(flat), target) == []
        apply(then, target)
    active = client.stat("next")
    assert (active.parent, active.kind) == ("committed", "ACTIVE")
    client.commit("committed-next", "next")
    committed_next = client.stat("committed-next")
    assert (committed_next.parent, committed_next.kind) == ("committed", "COMMITTED")
    assert failure(lambda: client.stat("next"))[0] is grpc.StatusCode.NOT_FOUND

    walked = {info.name: info for info in client.walk()}
    assert walked["committed"] == committed
    assert walked["committed-next"] == committed_next

    apply(then, str(flat))
    with mounted(client.view("view", "committed-next"), str(work / "view")) as target:
        assert differences(str(flat), target) == []
    client.remove("view")
    with pytest.raises(grpc.RpcError, match="remove"):
        client.remove("committed")
    client.remove("committed-next")
    client.remove("committed")
    assert list(client.walk()) == []


def test_stat_active(client: SnapshotsClient, work: Path) -> None:
    target = prepare_mounted(client, work, "preparing")
    apply([file("foo", "foo\n", 0o777)], target)
    info = client.stat("preparing")
    assert (info.name, info.kind, info.parent) == ("preparing", "ACTIVE", "")


def test_stat_committed(client: SnapshotsClient, work: Path) -> None:
    target = prepare_mounted(client, work, "preparing")
    apply([file("foo", "foo\n", 0o777)], target)
    client.commit("committed", "preparing")  # while it is mounted
    info = client.stat("committed")
    assert (info.name, info.kind, info.parent) == ("committed", "COMMITTED", "")


def test_transitivity(client: SnapshotsClient, work: Path) -> None:
    with mounted(client.prepare("preparing"), str(work / "preparing")) as target:
        apply([file("foo", "foo\n", 0o777)], target)
    client.commit("a", "preparing")
    with mounted(client.prepare("next", "a"), str(work / "next")) as target:
        apply([file("foo", "foo bar\n", 0o777)], target)
    client.commit("b", "next")
    assert client.stat("a").parent == ""
    assert client.stat("b").parent == "a"
    assert client.stat(client.stat("b").parent).parent == ""


def test_prepare_and_view_of_a_taken_key(client: SnapshotsClient) -> None:
    client.prepare("preparing")
    client.commit("a", "preparing")
    client.prepare("layer", "a")
    assert failure(lambda: client.view("layer", "a"))[0] is grpc.StatusCode.ALREADY_EXISTS
    assert failure(lambda: client.prepare("layer", "a"))[0] is grpc.StatusCode.ALREADY_EXISTS
    client.view("view", "a")
    assert failure(lambda: client.view("view", "a"))[0] is grpc.StatusCode.ALREADY_EXISTS


def test_update(client: SnapshotsClient) -> None:
    before = time.time_ns()
    base_snapshots(client)
    after = time.time_ns()
    for name, kind, parent in (
        ("c1", "COMMITTED", ""),
        ("c2", "COMMITTED", "c1"),
        ("a1", "ACTIVE", "c2"),
        ("a2", "ACTIVE", ""),
        ("v1", "VIEW", "c2"),
        ("v2", "VIEW", ""),
    ):
        made = client.stat(name)
        assert before <= made.created_ns <= after
        assert made.updated_ns == made.created_ns
        assert (made.name, made.kind, made.parent) == (name, kind, parent)

        labels = {"l1": "v1", "l2": "v2", "l3": "v3", "containerd.io/gc.root": "now"}
        start = time.time_ns()
        updated = client.update(name, labels, parent="doesnotexist")
        assert start <= updated.updated_ns <= time.time_ns()
        assert updated == dataclasses.replace(made, labels=labels, updated_ns=updated.updated_ns)
        assert client.stat(name) == updated

        masked = client.update(name, {"l1": "updated", "l4": "v4"}, "labels.l1", "labels.l2")
        assert masked.labels == {"l1": "updated", "l3": "v3", "containerd.io/gc.root": "now"}

        replaced = client.update(name, {"l4": "v4", "containerd.io/gc.root": "now"}, "labels")
        assert replaced.labels == {"l4": "v4", "containerd.io/gc.root": "now"}

        code, _ = failure(functools.partial(client.update, name, {}, "parent", parent="doesnotexist"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert client.stat(name) == replaced


def test_remove(client: SnapshotsClient) -> None:
    client.prepare("committed-a")
    client.commit("committed-1", "committed-a")
    client.prepare("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.view("reuse-1", "committed-1")
    client.remove("reuse-1")
    client.prepare("reuse-1")
    client.remove("committed-1")
    client.commit("committed-1", "reuse-1")
    assert [info.name for info in client.walk()] == ["committed-1"]


def test_walk(client: SnapshotsClient) -> None:
    root = {"containerd.io/gc.root": "check-walk"}
    client.prepare("a-np", "", root)
    client.prepare("p-tmp", "", root)
    client.commit("p", "p-tmp", root)
    client.prepare("a", "p", root)
    client.view("v", "p", root)
    client.prepare("p-wl-tmp", "", root)
    client.commit("p-wl", "p-wl-tmp", {"l": "1", **root})
    client.prepare("a-wl", "p-wl", {"l": "2", **root})
    client.view("v-wl", "p-wl", {"l": "3", **root})
    client.prepare("a-np-wl", "", {"l": "2", **root})

    in_root = 'labels."containerd.io/gc.root"==check-walk'
    everything = {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}
    for filters, names in (
        ([], everything),
        ([in_root], everything),
        ([f"kind==active,{in_root}"], {"a-np", "a", "a-wl", "a-np-wl"}),
        ([f"kind==view,{in_root}"], {"v", "v-wl"}),
        ([f"kind==committed,{in_root}"], {"p", "p-wl"}),
        (["name==p", "name==a-np-wl"], {"p", "a-np-wl"}),
        (["name==a-wl,labels.l"], {"a-wl"}),
        (["parent==p"], {"a", "v"}),
        ([f'parent!="",{in_root}'], {"a", "v", "a-wl", "v-wl"}),
        (["labels.l"], {"p-wl", "a-wl", "v-wl", "a-np-wl"}),
        (["labels.l==2"], {"a-wl", "a-np-wl"}),
    ):
        found = [info.name for info in client.walk(*filters)]
        assert len(found) == len(set(found))
        assert set(found) == names, filters


def test_layer_file_update(client: SnapshotsClient, work: Path) -> None:
    # Same size and, on a fast machine, the same second: the upper file must win all the same.
    first = [
        directory("etc", 0o700),
        file("etc/hosts", "mydomain 10.0.0.1", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o644),
    ]
    then = [
        file("etc/hosts", "mydomain 10.0.0.2", 0o644),
        file("etc/profile", "PATH=/usr/bin", 0o666),
        directory("root", 0o700),
        file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
    ]
    for number in range(5):
        check_layers(client, work, first, then, tag=str(number))


def test_remove_directory_in_lower_layer(client: SnapshotsClient, work: Path) -> None:
    check_layers(
        client,
        work,
        [directory("lib", 0o700), file("lib/hidden", "", 0o644)],
        [removed("lib"), directory("lib", 0o700), file("lib/not-hidden", "", 0o644)],
        [file("lib/newfile", "", 0o644)],
    )


def test_chown(client: SnapshotsClient, work: Path) -> None:
    paths = ("opt", "opt/a", "opt/a/b", "opt/a/b/file.txt")
    check_layers(
        client,
        work,
        [*(directory(path, 0o700) for path in paths[:3]), file(paths[3], "hello", 0o644)],
        [owned(path, 1, 1) for path in paths],
    )


def test_directory_permission_on_commit(client: SnapshotsClient, work: Path) -> None:
    check_layers(
        client,
        work,
        [
            *(directory(f"dir{number}", 0o700) for number in range(1, 6)),
            file("dir4/f1", "...", 0o644),
            file("dir5/f1", "...", 0o644),
            *(owned(path, 1, 1) for path in ("dir1", "dir2", "dir3", "dir5", "dir5/f1")),
        ],
        [owned("dir2", 0, 0), removed("dir3"), owned("dir4", 1, 1), owned("dir4/f1", 1, 1)],
        [
            directory("dir3", 0o700),
            owned("dir3", 1, 1),
            removed("dir5"),
            directory("dir5", 0o700),
            owned("dir5", 1, 1),
        ],
    )


def test_remove_intermediate_snapshot(client: SnapshotsClient) -> None:
    client.prepare("base")
    client.commit("committed-base", "base")
    client.prepare("intermediate", "committed-base")
    client.commit("committed-intermediate", "intermediate")
    client.prepare("top", "committed-intermediate")
    code, _ = failure(lambda: client.remove("committed-intermediate"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    for name in ("top", "committed-intermediate", "committed-base"):
        client.remove(name)


def test_deleted_files_in_child_snapshot(client: SnapshotsClient, work: Path) -> None:
    check_layers(
        client,
        work,
        [file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)],
        [removed("foobar")],
        [],
    )


def test_move_file_from_lower_layer(client: SnapshotsClient, work: Path) -> None:
    check_layers(
        client,
        work,
        [
            directory("dir1", 0o700),
            file("dir1/f1", "Hello", 0o644),
            directory("dir2", 0o700),
            file("dir2/f2", "...", 0o644),
        ],
        [
            directory("dir3", 0o700),
            file("dir3/f1", "Hello", 0o644),
            removed("dir1"),
            linked("dir2/f2", "dir3/f2"),
            removed("dir2/f2"),
        ],
    )


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_view_is_read_only(client: SnapshotsClient, work: Path, depth: int) -> None:
    parent = ""
    for number in range(depth):
        client.prepare(f"preparing-{number}", parent)
        client.commit(f"committed-{number}", f"preparing-{number}")
        parent = f"committed-{number}"
    with (
        mounted(client.view("view", parent), str(work / "view")) as target,
        pytest.raises(OSError, match="Read-only"),
    ):
        apply([file("testfile", "testcontent", 0o777)], target)
    client.remove("view")


def test_stat_in_walk(client: SnapshotsClient) -> None:
    for number in range(30):  # 180 snapshots and more: several messages
        base_snapshots(client, f"{number}-")
    seen: list[Info] = []
    for info in client.walk():
        assert client.stat(info.name) == info
        seen.append(info)
    assert len(seen) == 180


def test_close_twice(client: SnapshotsClient, snapshots_socket: str) -> None:
    client.prepare("prepare")
    client.commit("name", "prepare")
    client.remove("name")
    client.close()
    client.close()
    with SnapshotsClient(snapshots_socket) as other:
        assert list(other.walk()) == []


def test_root_permission(client: SnapshotsClient, work: Path) -> None:
    target = prepare_mounted(client, work, "preparing")
    assert os.stat(target).st_mode & 0o7777 == 0o755
    unmount(target)


def test_rename(client: SnapshotsClient, work: Path) -> None:
    # Renaming a directory of a lower layer is left out, as containerd does for overlayfs: it gives EXDEV.
    check_layers(
        client,
        work,
        [
            directory("dir1", 0o700),
            directory("somefiles", 0o700),
            file("somefiles/f1", "was here first!", 0o644),
            file("somefiles/f2", "nothing interesting", 0o644),
        ],
        [
            file("somefiles/f1-overwrite", "new content 1", 0o644),
            renamed("somefiles/f1-overwrite", "somefiles/f1"),
            renamed("somefiles/f2", "somefiles/f3"),
        ],
    )


def test_128_layers_mount(client: SnapshotsClient, work: Path) -> None:
    flat = work / "flat"
    flat.mkdir()
    parent = ""
    layers: list[list[Change]] = [
        [
            file("bottom", "way at the bottom\n", 0o777),
            file("overwriteme", "FIRST!\n", 0o777),
            directory("addhere", 0o755),
            directory("onlyme", 0o755),
            file("onlyme/bottom", "bye!\n", 0o777),
        ]
    ]
    layers += [
        [
            file("overwriteme", f"{number} WAS HERE!\n", 0o777),
            file(f"addhere/file-{number}", "same\n", 0o755),
            removed("onlyme"),
            directory("onlyme", 0o755),
            file(f"onlyme/file-{number}", "only me!\n", 0o777),
        ]
        for number in range(1, 128)
    ]
    for number, changes in enumerate(layers):
        with mounted(client.prepare(f"prepare-{number}", parent), str(work / f"prepare-{number}")) as target:
            assert differences(str(flat), target) == []
            apply(changes, str(flat))
            apply(changes, target)
            assert differences(str(flat), target) == []
        parent = f"committed-{number}"
        client.commit(parent, f"prepare-{number}")
    with mounted(client.view("fullview", parent), str(work / "fullview")) as target:
        assert differences(str(flat), target) == []
