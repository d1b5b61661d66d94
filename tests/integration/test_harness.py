"""The harness itself: what it starts works, and nothing of it is left."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests import oci, trees
from tests.estargz import build, file
from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import (
    CommandFailed,
    Containerd,
    Layergate,
    Registry,
    Throttle,
    call,
    fresh_file_system,
    mounts,
)
from tests.integration.processes import Daemon, NotReady, is_running, unmount_below

ESTARGZ_OWN = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")


def test_a_daemon_ends_with_descendants_that_have_left_its_session(tmp_path: Path) -> None:
    script = "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & exec sleep 1000"
    with Daemon(["sh", "-c", script], log=str(tmp_path / "log")) as daemon:
        daemon.wait_until(lambda: len(daemon.descendants()) == 2)
        pids = [daemon.pid, *daemon.descendants()]
        daemon.kill9()
        assert daemon.descendants() == pids[1:]
    assert not any(is_running(pid) for pid in pids)


def test_descendants_count_when_their_environment_is_another(tmp_path: Path) -> None:
    script = "sh -c 'env -i sleep 1000 & wait' & wait"
    with Daemon(["sh", "-c", script], log=str(tmp_path / "log")) as daemon:
        daemon.wait_until(lambda: len(daemon.descendants()) == 2)
        pids = daemon.descendants()
    assert not any(is_running(pid) for pid in pids)


def test_a_daemon_that_ends_early_is_reported_with_its_log(tmp_path: Path) -> None:
    with (
        Daemon(["sh", "-c", "echo cannot start; exit 3"], log=str(tmp_path / "log")) as daemon,
        pytest.raises(NotReady, match="cannot start"),
    ):
        daemon.wait_until(lambda: False)


def test_a_failed_command_says_what_it_printed() -> None:
    with pytest.raises(CommandFailed, match="exit status 3\nout\nerr") as caught:
        call(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert caught.value.returncode == 3


@pytest.mark.root
def test_mounts_below_a_directory_are_found_and_undone(tmp_path: Path) -> None:
    outer, inner = tmp_path / "a blank", tmp_path / "a blank" / "inner"
    try:
        for directory in (outer, inner):
            directory.mkdir()
            call(["mount", "-t", "tmpfs", "-o", "size=1m", "here", str(directory)])
        assert [mount.target for mount in mounts(str(tmp_path))] == [str(outer), str(inner)]
        assert {(mount.type, mount.source) for mount in mounts(str(tmp_path))} == {("tmpfs", "here")}
        with open(inner / "busy", "wb"):
            unmount_below(str(tmp_path))
        assert mounts(str(tmp_path)) == []
    finally:
        unmount_below(str(tmp_path))


@pytest.mark.root
def test_a_fresh_file_system_is_ext4_with_a_journal_and_goes_again(tmp_path: Path) -> None:
    with fresh_file_system(f"{tmp_path}/fs", size=64 << 20) as directory:
        (mount,) = mounts(directory)
        features = call(["dumpe2fs", "-h", mount.source])
        assert mount.type == "ext4"
        assert "has_journal" in features
    assert mounts(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.containerd
def test_throttle_counts_and_its_rate_changes_while_it_runs(registry: Registry, throttle: Throttle) -> None:
    layer = build([file("noise", os.urandom(1 << 20))])
    oci.push(registry.host, "noise", oci.image([layer]))
    url = f"http://{throttle.host}/v2/noise/blobs/{layer.digest}"
    with httpx.Client(trust_env=False) as client:
        assert client.get(url).content == layer.blob
        assert throttle.connections == 1
        assert len(layer.blob) < throttle.bytes < len(layer.blob) + 4096

        throttle.rate = 1
        received: list[bytes] = []
        slow = threading.Thread(target=lambda: received.append(client.get(url, timeout=60).content))
        slow.start()
        with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False) as other:
            other.get(url, timeout=0.5)
        assert received == []
        throttle.rate = 0
        slow.join()
    assert received == [layer.blob]


@pytest.mark.containerd
@pytest.mark.parametrize("form", ["plain", "estargz", "optimized"])
def test_each_form_of_the_real_image_runs(
    ordinary_containerd: Containerd, references: References, form: str
) -> None:
    reference = getattr(references, form)
    ordinary_containerd.pull(reference)
    assert ordinary_containerd.run(reference) == recipe.OUTPUT
    assert ordinary_containerd.run(reference, ["cat", "/etc/skel/only this"]) == "an opaque directory\n"
    with pytest.raises(CommandFailed, match="No such file"):
        ordinary_containerd.run(reference, ["ls", "/etc/issue.net"])


@pytest.mark.containerd
def test_the_real_image_holds_what_it_promises_in_each_form(
    ordinary_containerd: Containerd, references: References, directory: str
) -> None:
    found = []
    for reference in (references.plain, references.estargz, references.optimized):
        ordinary_containerd.pull(reference)
        with ordinary_containerd.mounted(reference, f"{directory}/mounted") as root:
            found.append(trees.scan(root))
    tree = found[0]
    for other in found[1:]:
        # The root is not in the layers: it has the time of its unpacking.
        assert trees.difference(tree, other, without=[trees.ROOT, *ESTARGZ_OWN]) == []
    assert sum(entry.kind == "file" for entry in tree.values()) >= 8000
    assert tree[recipe.LARGE_FILE].size == recipe.LARGE_SIZE
    app = {
        path.removeprefix("srv/app/"): entry for path, entry in tree.items() if path.startswith("srv/app/")
    }
    assert (app["suid"].mode, app["sgid"].mode, app["sticky"].mode) == (0o4755, 0o2755, 0o1777)
    assert app["linked"].links == {"srv/app/linked", "srv/app/links/second", "srv/app/links/third"}
    assert set(app["described"].xattrs) == {"user.text", "user.binary"}
    assert set(app["capable"].xattrs) == {"security.capability"}
    assert (app["null"].rdev, app["loop"].rdev) == (os.makedev(1, 3), os.makedev(7, 200))
    assert app["fifo"].kind == "fifo"
    assert app["a name with blanks and ünïcödé ☃"].size == 8
    assert {path for path in tree if path.startswith("etc/skel/")} == {"etc/skel/only this"}
    assert not {"etc/issue.net", "usr/share/doc/gzip", "usr/share/doc/sed"} & tree.keys()
    assert tree["media"].kind == "file"
    assert tree["etc/debian_version"].kind == "directory"


@pytest.mark.containerd
def test_a_container_runs_on_while_containerd_is_restarted(
    ordinary_containerd: Containerd, references: References
) -> None:
    ordinary_containerd.pull(references.plain)
    with ordinary_containerd.container(references.plain) as container:
        pid = container.pid
        with open(f"{container.root}/etc/hostname", encoding="utf-8") as hostname:
            assert hostname.read() == "debian\n"
        ordinary_containerd.stop()
        assert is_running(pid)
        ordinary_containerd.start()
        assert container.pid == pid
        assert container.execute("python3", "-c", "print(6 * 7)") == "42\n"
    assert not is_running(pid)


@pytest.mark.containerd
def test_containers_and_mounts_go_when_containerd_was_killed(
    file_system: str, references: References
) -> None:
    with Containerd(f"{file_system}/killed") as containerd:
        containerd.pull(references.plain)
        name = f"left-behind-{os.getpid()}"
        containerd.ctr("run", "--detach", "--null-io", references.plain, name, "sleep", "infinity")
        (line,) = containerd.ctr("tasks", "list").splitlines()[1:]
        pid = int(line.split()[1])
        containerd.kill9()
        assert is_running(pid)
    assert not is_running(pid)
    assert mounts(f"{file_system}/killed") == []


STAND_IN = """
import os, socket, subprocess, sys, time
mount, root, address = sys.argv[1] == "mounter", sys.argv[3], sys.argv[5]
path = f"{root}/mounter.sock" if mount else address
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
if mount:
    os.mkdir(f"{root}/gate")
    subprocess.run(["mount", "-t", "tmpfs", "gate", f"{root}/gate"], check=True)
elif not os.path.isdir(root):
    os.mkdir(root)
    arguments = ["mounter", *sys.argv[2:]]
    subprocess.Popen([sys.executable, "-c", os.environ["STAND_IN"], *arguments], start_new_session=True)
    while not os.path.exists(f"{root}/mounter.sock"):
        time.sleep(0.01)
listener.bind(path)
listener.listen()
time.sleep(1000)
"""
"""What the harness relies on: the socket of `serve`, a mounter that outlives it, mounts below the root."""


@pytest.mark.root
def test_layergate_and_its_mounter_are_told_apart_and_both_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", STAND_IN)
    with Layergate(str(tmp_path), program=[sys.executable, "-c", STAND_IN]) as layergate:
        mounter = layergate.mounter_pid
        assert layergate.descendants == [mounter]
        serve = layergate.pid
        layergate.kill9()
        assert is_running(mounter)
        assert not is_running(serve)
        layergate.start()
        assert layergate.mounter_pid == mounter
        assert [mount.source for mount in mounts(layergate.root)] == ["gate"]
        layergate.kill9_mounter()
        assert not is_running(mounter)
        assert is_running(layergate.pid)
        serve = layergate.pid
    assert not is_running(serve)
    assert mounts(str(tmp_path)) == []


@pytest.mark.root
def test_a_mounter_left_by_serve_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", STAND_IN)
    with Layergate(str(tmp_path), program=[sys.executable, "-c", STAND_IN]) as layergate:
        mounter = layergate.mounter_pid
        layergate.stop()
        assert is_running(mounter)
    assert not is_running(mounter)
    assert mounts(str(tmp_path)) == []
