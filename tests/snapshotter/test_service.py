"""The service over its socket: statuses, remote snapshots, clean-up, usage, and the socket itself."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio.to_thread
import grpc
import pytest

from snapshotter.errors import SocketInUse, Unavailable
from snapshotter.lowers import LazyLink, Link, Lowerdirs, NoLowers, OrdinaryLink
from snapshotter.proto import snapshots_pb2 as pb
from tests.snapshotter.serving import serving
from tests.snapshotter.snapshots_client import SnapshotsClient, failure, mount_all, unmount_below

REF = "containerd.io/snapshot.ref"


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is doing; the test's time limit is the limit."""
    while not condition():
        time.sleep(0.01)


class FakeLowers(NoLowers):
    """A lazy part that opens every layer with a label `layer`, and remembers what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.opened: list[str] = []
        self.asked: list[tuple[str, tuple[Link, ...]]] = []
        self.gone: list[str] = []
        self.retained: list[set[str]] = []
        self.opening_may_end = threading.Event()
        self.opening_may_end.set()
        self.problem: Exception | None = None

    async def open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        layer = labels.get("layer")
        self.opened.append(layer or "")
        await anyio.to_thread.run_sync(self.opening_may_end.wait)
        if self.problem:
            raise self.problem
        return layer

    async def lowerdirs(self, key: str, chain: Sequence[Link]) -> Lowerdirs:
        self.asked.append((key, tuple(chain)))
        if self.problem:
            raise self.problem
        if not any(isinstance(link, LazyLink) for link in chain):
            return await super().lowerdirs(key, chain)
        lazy = self.directory / "lazy"
        lazy.mkdir(exist_ok=True)
        return Lowerdirs((str(lazy),), lazy=True)

    async def usage(self, layer: str) -> tuple[int, int]:
        return 1234, len(layer)

    async def removed(self, key: str) -> None:
        self.gone.append(key)
        if self.problem:
            raise self.problem

    async def retain(self, layers: AbstractSet[str]) -> None:
        self.retained.append(set(layers))


@pytest.fixture
def lowers(tmp_path: Path) -> FakeLowers:
    return FakeLowers(tmp_path)


@pytest.fixture
def snapshots_socket(snapshots_root: Path, socket_directory: str, lowers: FakeLowers) -> Iterator[str]:
    with serving(snapshots_root, f"{socket_directory}/s", lowers):
        yield f"{socket_directory}/s"
        lowers.opening_may_end.set()


def prepare_remote(
    client: SnapshotsClient, ref: str, parent: str = "", *, layer: str = "", key: str = ""
) -> tuple[grpc.StatusCode, str]:
    labels = {REF: ref, "layer": layer, "containerd.io/snapshot/note": "kept"}
    return failure(lambda: client.prepare(key or f"ns/1/extract {ref}", parent, labels))


def find_remote(client: SnapshotsClient, ref: str, parent: str = "") -> list[str]:
    """As containerd looks it up after ALREADY_EXISTS."""
    found = list(client.walk(f'labels."{REF}"=={ref},parent=="{parent}"'))
    assert all(info.kind == "COMMITTED" for info in found)
    assert all(info.labels[REF] == ref and info.parent == parent for info in found)
    return [info.name for info in found]


def test_statuses(client: SnapshotsClient) -> None:
    client.prepare("active")
    client.prepare("committing")
    client.commit("committed", "committing")
    client.view("view", "committed")
    codes = grpc.StatusCode
    for code, call in (
        (codes.ALREADY_EXISTS, lambda: client.prepare("active")),
        (codes.ALREADY_EXISTS, lambda: client.view("committed")),
        (codes.NOT_FOUND, lambda: client.prepare("new", "nosuch")),
        (codes.INVALID_ARGUMENT, lambda: client.prepare("new", "active")),
        (codes.INVALID_ARGUMENT, lambda: client.prepare("")),
        (codes.INVALID_ARGUMENT, lambda: client.view("")),
        (codes.ALREADY_EXISTS, lambda: client.commit("committed", "active")),
        (codes.FAILED_PRECONDITION, lambda: client.commit("new", "view")),
        (codes.NOT_FOUND, lambda: client.commit("new", "nosuch")),
        (codes.INVALID_ARGUMENT, lambda: client.commit("", "active")),
        (codes.INVALID_ARGUMENT, lambda: client.commit("new", "active", parent="committed")),
        (codes.FAILED_PRECONDITION, lambda: client.remove("committed")),
        (codes.NOT_FOUND, lambda: client.remove("nosuch")),
        (codes.NOT_FOUND, lambda: client.stat("nosuch")),
        (codes.NOT_FOUND, lambda: client.usage("nosuch")),
        (codes.NOT_FOUND, lambda: client.mounts("nosuch")),
        (codes.FAILED_PRECONDITION, lambda: client.mounts("committed")),
        (codes.NOT_FOUND, lambda: client.update("nosuch", {})),
        (codes.INVALID_ARGUMENT, lambda: client.update("active", {}, "labels.a", "kind")),
        (codes.INVALID_ARGUMENT, lambda: list(client.walk("name=x"))),
    ):
        assert failure(call)[0] is code
    assert {info.name for info in client.walk()} == {"active", "committed", "view"}


def test_an_unforeseen_error_is_internal_and_on_one_line(client: SnapshotsClient, lowers: FakeLowers) -> None:
    client.prepare("committing")
    client.commit("base", "committing")
    lowers.problem = RuntimeError("two\nlines")
    assert failure(lambda: client.prepare("key", "base")) == (
        grpc.StatusCode.INTERNAL,
        "RuntimeError: two lines",
    )
    assert [info.name for info in client.walk()] == ["base"]  # nothing is left of it
    assert lowers.gone[-1] == "key"

    lowers.problem = Unavailable("not now")
    assert failure(lambda: client.view("key", "base")) == (grpc.StatusCode.UNAVAILABLE, "not now")
    lowers.problem = None
    client.prepare("key", "base")


def test_a_failure_to_release_does_not_fail_remove(client: SnapshotsClient, lowers: FakeLowers) -> None:
    client.prepare("key")
    lowers.problem = RuntimeError("busy")
    client.remove("key")
    assert list(client.walk()) == []


def test_a_remote_layer_is_committed_without_unpacking(client: SnapshotsClient, lowers: FakeLowers) -> None:
    code, _ = prepare_remote(client, "sha256:one", layer="aaaa")
    assert code is grpc.StatusCode.ALREADY_EXISTS
    (name,) = find_remote(client, "sha256:one")
    assert name == "sha256:one"
    info = client.stat(name)
    assert (info.kind, info.parent) == ("COMMITTED", "")
    assert info.labels == {REF: "sha256:one", "layer": "aaaa", "containerd.io/snapshot/note": "kept"}
    assert client.usage(name) == (1234, 4)

    assert prepare_remote(client, "sha256:two", name, layer="bb")[0] is grpc.StatusCode.ALREADY_EXISTS
    assert find_remote(client, "sha256:two", name) == ["sha256:two"]

    (mount,) = client.prepare("container", "sha256:two")
    assert lowers.asked == [("container", (LazyLink("bb"), LazyLink("aaaa")))]
    assert mount.options[-1] == "xino=on"
    assert client.mounts("container") == [mount]
    client.remove("container")
    assert lowers.gone == ["container"]


def test_a_remote_layer_that_is_there_is_not_opened_again(
    client: SnapshotsClient, lowers: FakeLowers
) -> None:
    prepare_remote(client, "sha256:one", layer="aaaa")
    assert prepare_remote(client, "sha256:one", layer="aaaa", key="other/2/extract")[0] is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    assert lowers.opened == ["aaaa"]
    assert len(list(client.walk())) == 1


def test_one_layer_on_two_parents(client: SnapshotsClient) -> None:
    for namespace in ("one", "two"):
        client.prepare(f"{namespace}/1/active")
        client.commit(f"{namespace}/2/base", f"{namespace}/1/active")
        code, _ = prepare_remote(client, "sha256:x", f"{namespace}/2/base", layer="aaaa")
        assert code is grpc.StatusCode.ALREADY_EXISTS
    (first,) = find_remote(client, "sha256:x", "one/2/base")
    (second,) = find_remote(client, "sha256:x", "two/2/base")
    assert first == "sha256:x"
    assert second.startswith("sha256:x@")


def test_a_layer_on_an_ordinary_one(
    client: SnapshotsClient, snapshots_root: Path, lowers: FakeLowers
) -> None:
    client.prepare("active")
    client.commit("base", "active")
    prepare_remote(client, "sha256:x", "base", layer="aaaa")
    client.view("view", "sha256:x")
    ((_, chain),) = lowers.asked
    base = OrdinaryLink(str(snapshots_root / "snapshots/1/fs"))
    assert chain == (LazyLink("aaaa"), base)


@pytest.mark.parametrize("problem", [None, RuntimeError("the lazy part is broken")])
def test_a_layer_that_cannot_be_opened_is_unpacked(
    client: SnapshotsClient, lowers: FakeLowers, problem: Exception | None
) -> None:
    lowers.problem = problem
    (mount,) = client.prepare("key", "", {REF: "sha256:one"})
    assert (mount.type, list(mount.options)) == ("bind", ["rw", "rbind"])
    lowers.problem = None
    client.commit("ns/2/sha256:one", "key", {REF: "sha256:one"})
    # The next one who wants it finds it, in another namespace too.
    assert prepare_remote(client, "sha256:one")[0] is grpc.StatusCode.ALREADY_EXISTS
    assert find_remote(client, "sha256:one") == ["ns/2/sha256:one"]


def test_a_layer_is_not_opened_for_a_prepare_that_cannot_succeed(
    client: SnapshotsClient, lowers: FakeLowers
) -> None:
    client.prepare("active")
    assert prepare_remote(client, "sha256:one", "nosuch", layer="a")[0] is grpc.StatusCode.NOT_FOUND
    assert prepare_remote(client, "sha256:one", "active", layer="a")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert prepare_remote(client, "sha256:one", layer="a", key="active")[0] is grpc.StatusCode.ALREADY_EXISTS
    assert lowers.opened == []


def test_concurrent_prepares_open_once(client: SnapshotsClient, lowers: FakeLowers) -> None:
    lowers.opening_may_end.clear()
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(prepare_remote, client, "sha256:one", layer="aaaa", key=f"ns/{number}/x")
            for number in range(8)
        ]
        until(lambda: bool(lowers.opened))
        lowers.opening_may_end.set()
        assert {call.result()[0] for call in calls} == {grpc.StatusCode.ALREADY_EXISTS}
    assert lowers.opened == ["aaaa"]
    assert find_remote(client, "sha256:one") == ["sha256:one"]


def test_a_call_goes_on_when_its_caller_hangs_up(
    client: SnapshotsClient, snapshots_socket: str, lowers: FakeLowers
) -> None:
    lowers.opening_may_end.clear()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(prepare_remote, client, "sha256:one", layer="aaaa")
        until(lambda: bool(lowers.opened))
        client.close()
        assert call.result()[0] is grpc.StatusCode.CANCELLED
    with SnapshotsClient(snapshots_socket) as other:
        assert find_remote(other, "sha256:one") == []
        lowers.opening_may_end.set()
        until(lambda: bool(find_remote(other, "sha256:one")))


def test_cleanup_tells_which_layers_are_in_use(client: SnapshotsClient, lowers: FakeLowers) -> None:
    prepare_remote(client, "sha256:one", layer="aaaa")
    prepare_remote(client, "sha256:two", layer="bbbb")
    client.cleanup()
    client.remove("sha256:two")
    client.cleanup()
    assert lowers.retained == [{"aaaa", "bbbb"}, {"aaaa"}]


def test_no_layer_is_let_go_while_one_is_being_opened(client: SnapshotsClient, lowers: FakeLowers) -> None:
    lowers.opening_may_end.clear()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(prepare_remote, client, "sha256:one", layer="aaaa")
        until(lambda: bool(lowers.opened))
        client.cleanup()
        assert lowers.retained == []
        lowers.opening_may_end.set()
        call.result()
    client.cleanup()
    assert lowers.retained == [{"aaaa"}]


def test_commit_lets_go_of_the_key(client: SnapshotsClient, lowers: FakeLowers) -> None:
    client.prepare("active")
    client.commit("committed", "active")
    client.remove("committed")
    assert lowers.gone == ["active"]


def test_remove_drops_the_key_and_cleanup_the_files(client: SnapshotsClient, snapshots_root: Path) -> None:
    directory = snapshots_root / "snapshots"
    client.prepare("gone")
    client.prepare("stays")
    for orphan in ("new-abc", "dead-abc", "77"):
        (directory / orphan / "fs" / "deep").mkdir(parents=True)
    client.remove("gone")
    assert (directory / "1" / "fs").is_dir()
    client.cleanup()
    assert [entry.name for entry in directory.iterdir()] == ["2"]
    assert client.mounts("stays")[0].source == str(directory / "2" / "fs")


def test_an_orphan_does_not_get_into_a_new_snapshot(client: SnapshotsClient, snapshots_root: Path) -> None:
    # What a crash between the rename and the commit of its transaction leaves.
    orphan = snapshots_root / "snapshots" / "1" / "fs"
    orphan.mkdir(parents=True)
    (orphan / "old").write_text("of a snapshot that never was")
    (mount,) = client.prepare("key")
    assert mount.source == str(orphan)
    assert os.listdir(orphan) == []
    client.cleanup()
    assert os.listdir(snapshots_root / "snapshots") == ["1"]


@pytest.mark.root
def test_cleanup_does_not_delete_through_a_mount(
    client: SnapshotsClient, snapshots_root: Path, work: Path
) -> None:
    client.prepare("key")
    client.prepare("other")
    precious = work / "precious"
    precious.mkdir()
    (precious / "file").write_text("not ours")
    inside = snapshots_root / "snapshots" / "1" / "fs" / "data"
    inside.mkdir()
    mount_all([pb.Mount(type="bind", source=str(precious), options=["rw", "rbind"])], str(inside))
    client.remove("key")
    client.remove("other")
    client.cleanup()
    assert (precious / "file").read_text() == "not ours"
    (dead,) = os.listdir(snapshots_root / "snapshots")
    assert dead.startswith("dead-")
    unmount_below(str(snapshots_root))
    client.cleanup()
    assert os.listdir(snapshots_root / "snapshots") == []
    assert (precious / "file").read_text() == "not ours"


def test_usage(client: SnapshotsClient) -> None:
    (mount,) = client.prepare("active")
    top = Path(mount.source)
    empty_size, empty_inodes = client.usage("active")
    assert empty_inodes == 1
    (top / "big").write_bytes(b"x" * 100_000)
    os.link(top / "big", top / "link")
    (top / "directory").mkdir()
    os.symlink("nowhere", top / "directory" / "symlink")
    blocks = sum(os.lstat(top / path).st_blocks for path in ("big", "directory", "directory/symlink"))
    assert client.usage("active") == (empty_size + blocks * 512, 4)

    client.commit("committed", "active")
    assert client.usage("committed") == (empty_size + blocks * 512, 4)
    (top / "later").write_bytes(b"x" * 100_000)
    assert client.usage("committed")[1] == 4  # counted once
    client.view("view", "committed")
    assert client.usage("view") == (0, 0)


@pytest.mark.root
def test_the_root_directory_has_the_owner_of_what_is_below(client: SnapshotsClient) -> None:
    (mount,) = client.prepare("active")
    os.chown(mount.source, 12, 34)
    os.chmod(mount.source, 0o700)
    client.commit("base", "active")
    (child,) = client.prepare("child", "base")
    upper = next(option for option in child.options if option.startswith("upperdir="))
    status = os.stat(upper.removeprefix("upperdir="))
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o755)


def test_directories_do_not_depend_on_the_umask(client: SnapshotsClient, snapshots_root: Path) -> None:
    old = os.umask(0o077)
    try:
        client.prepare("key")
    finally:
        os.umask(old)
    directory = snapshots_root / "snapshots"
    modes = [stat.S_IMODE((directory / path).stat().st_mode) for path in ("", "1", "1/fs", "1/work")]
    assert modes == [0o700, 0o700, 0o755, 0o711]


def test_snapshots_survive_a_restart(snapshots_root: Path, socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    with serving(snapshots_root, path, NoLowers()), SnapshotsClient(path) as client:
        client.prepare("active")
        client.commit("base", "active", {"a": "b"})
        mounts = client.prepare("child", "base")
        infos = list(client.walk())
    with serving(snapshots_root, path, NoLowers()), SnapshotsClient(path) as client:
        assert list(client.walk()) == infos
        assert client.mounts("child") == mounts


def test_the_socket_is_roots_alone_and_goes_away(snapshots_root: Path, socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    with serving(snapshots_root, path, NoLowers()):
        assert os.listdir(socket_directory) == ["s"]
        status = os.lstat(path)
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
    assert os.listdir(socket_directory) == []


def test_a_stale_socket_is_replaced(snapshots_root: Path, socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with serving(snapshots_root, path, NoLowers()), SnapshotsClient(path) as client:
        assert list(client.walk()) == []


def test_a_living_socket_is_left_alone(tmp_path: Path, socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(path)
        living.listen()
        with pytest.raises(SocketInUse, match="running already"), serving(tmp_path, path, NoLowers()):
            pass
        assert os.path.exists(path)


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path, socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    Path(path).write_text("precious")
    with pytest.raises(SocketInUse, match="no socket"), serving(tmp_path, path, NoLowers()):
        pass
    assert Path(path).read_text() == "precious"
