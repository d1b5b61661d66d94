"""A node in use, as a local user, a container and whoever reads its files see it.

One node serves all tests here. Its root and its umask are as careless as an operator could choose them, and
the image comes from a registry that wants a password.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import pytest

from mounter.capabilities import MOUNTER, SERVE
from mounter.mountinfo import Mount, read_mounts
from snapshotter.containerd.labels import chain_ids
from tests import oci
from tests.estargz import build, chardev, dir, file, symlink
from tests.faulty_registry import FaultyRegistry
from tests.integration.conftest import file_system
from tests.integration.harness import LAYERGATE, CommandFailed, Container, Containerd, Layergate
from tests.integration.node import ON_DEMAND, Node, mounts_of, program_files
from tests.registry_faults import BearerLogin, docker_config
from tests.snapshotter.snapshots_client import mount_all, unmount

__all__ = ["file_system"]

pytestmark = pytest.mark.containerd

USER: Final = "somebody"
PASSWORD: Final = "correct-horse-battery"
WRONG: Final = "wrong-horse-battery"
NOBODY: Final = 65534
CAPABLE: Final = {"security.capability": bytes.fromhex("0100000200200000000000000000000000000000")}
CARELESS: Final = ("sh", "-c", 'umask 0; exec "$@"', "sh")
IMAGE: Final = oci.image(
    [
        build([*program_files("cat", "ls", "sh", "sleep", "chown"), dir("proc/"), dir("dev/"), dir("sys/")]),
        build(
            [
                dir("etc/"),
                file("etc/shadow", b"only for root\n", mode=0o600),
                file("etc/secret", b"only for 1000\n", mode=0o600, uid=1000, gid=1000),
                file("etc/setuid", b"#!/bin/sh\n", mode=0o6755),
                file("etc/capable", b"#!/bin/sh\n", mode=0o755, xattrs=CAPABLE),
                symlink("etc/away", "/etc/passwd"),
                chardev("etc/null", 1, 3, mode=0o666),
                dir("closed/", mode=0o700, uid=1000, gid=1000),
                file("closed/file", b"inside\n", uid=1000, gid=1000),
            ]
        ),
    ]
)


@dataclass
class Used:
    """A node that has pulled an image with a password, and runs a container of it."""

    node: Node
    registry: FaultyRegistry
    reference: str
    container: Container
    said: str
    """What the commands printed."""

    @property
    def root(self) -> str:
        return self.node.layergate.root

    @property
    def processes(self) -> list[int]:
        """Ours: serve, its fork server and workers, the mounter."""
        return [self.node.layergate.pid, *self.node.layergate.descendants]

    def mounts(self) -> list[Mount]:
        """Those below the root."""
        return [mount for mount in read_mounts() if mount.target.startswith(f"{self.root}/")]


def log_in(path: str, host: str, password: str) -> None:
    with open(path, "w", encoding="utf-8") as written:
        written.write(docker_config(host, BearerLogin(USER, password)))


@pytest.fixture(scope="module")
def used(file_system: str) -> Iterator[Used]:
    directory = f"{file_system}/hostile"
    os.makedirs(f"{directory}/layergate/root", mode=0o755)
    os.chmod(os.path.dirname(file_system), 0o711)  # for containers whose root is no root here
    with ExitStack() as stack:
        registry = stack.enter_context(FaultyRegistry())
        reference = registry.add_image("team/private", IMAGE)
        registry.require(BearerLogin(USER, PASSWORD))
        registry.redirect_blobs()
        log_in(f"{directory}/docker.json", registry.host, PASSWORD)
        config = (
            f'{ON_DEMAND}[record]\nenabled = true\n[credentials]\ndocker_config = "{directory}/docker.json"\n'
        )
        with open(f"{directory}/pull.toml", "w", encoding="utf-8") as written:
            written.write(config)
        layergate = stack.enter_context(
            Layergate(
                f"{directory}/layergate", config=config + "[log]\nlevel = 'debug'\n",
                program=[*CARELESS, *LAYERGATE],
            )
        )  # fmt: skip
        containerd = stack.enter_context(
            Containerd(f"{directory}/containerd", snapshotters={"layergate": layergate.socket})
        )
        node = Node(directory, layergate, containerd, "layergate")
        said = [node.pull(reference, "--config", f"{directory}/pull.toml", "--verbose")]
        container = stack.enter_context(containerd.container(reference, snapshotter=node.name))
        said.append(container.execute("/bin/cat", "/etc/shadow"))
        # Refusals have most to say: a token that has expired, a URL whose signature has, a wrong password.
        registry.expire_tokens()
        registry.expire_signatures()
        said.append(container.execute("/bin/cat", "/closed/file"))
        log_in(f"{directory}/docker.json", registry.host, WRONG)
        registry.expire_tokens()
        registry.expire_signatures()
        with suppress(CommandFailed):
            container.execute("/bin/cat", "/etc/secret")
        with pytest.raises(CommandFailed) as refused:
            node.pull(f"{registry.host}/team/private:none", "--config", f"{directory}/pull.toml", "--verbose")
        log_in(f"{directory}/docker.json", registry.host, PASSWORD)
        said += [refused.value.output, json.dumps(layergate.status())]
        yield Used(node, registry, reference, container, "\n".join(said))


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a local user without any rights."""
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run([*drop, *command], capture_output=True, text=True, check=False)


class TestSecrets:
    def test_there_was_something_to_hide(self, used: Used) -> None:
        assert used.registry.requests["token"] >= 2
        assert used.registry.requests["storage"] >= 2
        shown = [headers.get("authorization", "") for _, _, _, headers in used.registry.log]
        assert any(word.startswith("Basic ") for word in shown)
        assert any(word.startswith("Bearer ") for word in shown)

    @pytest.fixture
    def secrets(self, used: Used) -> re.Pattern[bytes]:
        words = [PASSWORD, WRONG]
        for _, _, path, headers in used.registry.log:
            words.append(headers.get("authorization", "").partition(" ")[2])
            words += re.findall(r"signature=[^&]+", path)
        found = {word for word in words if word}
        assert len(found) >= 6
        return re.compile(b"|".join(re.escape(word.encode()) + rb"(?![0-9])" for word in sorted(found)))

    def test_no_file_of_ours_has_one(self, used: Used, secrets: re.Pattern[bytes]) -> None:
        looked_at = 0
        for directory, _, names in os.walk(f"{used.node.directory}/layergate"):
            for name in names:
                path = os.path.join(directory, name)
                if stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as opened:
                        assert not secrets.search(opened.read()), path
                    looked_at += 1
        assert looked_at > 20

    def test_no_command_says_one(self, used: Used, secrets: re.Pattern[bytes]) -> None:
        assert "team/private" in used.said
        assert not secrets.search(used.said.encode())

    def test_no_process_shows_one(self, used: Used, secrets: re.Pattern[bytes]) -> None:
        assert len(used.processes) >= 3
        for pid in used.processes:
            for name in ("cmdline", "environ", "comm"):
                with (
                    suppress(FileNotFoundError, ProcessLookupError),
                    open(f"/proc/{pid}/{name}", "rb") as shown,
                ):
                    assert not secrets.search(shown.read()), name

    def test_containerd_is_told_none(self, used: Used, secrets: re.Pattern[bytes]) -> None:
        for directory, _, names in os.walk(f"{used.node.directory}/containerd/root"):
            for name in names:
                path = os.path.join(directory, name)
                if stat.S_ISREG(os.lstat(path).st_mode) and "snapshots" not in path:
                    with open(path, "rb") as opened:
                        assert not secrets.search(opened.read()), path


class TestLocalUsers:
    def test_sockets_are_roots_alone(self, used: Used) -> None:
        found = [
            used.node.layergate.socket,
            f"{used.node.layergate.socket}.commands",
            f"{used.root}/mounter.sock",
        ]
        for path in found:
            status = os.lstat(path)
            assert stat.S_ISSOCK(status.st_mode)
            assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0), path
            program = (
                "import socket, sys; socket.socket(socket.AF_UNIX, int(sys.argv[1])).connect(sys.argv[2])"
            )
            kind = "5" if path.endswith(".commands") else "1"
            refused = as_nobody(sys.executable, "-S", "-c", program, kind, path)
            assert "PermissionError" in refused.stderr

    def test_nothing_in_the_root_is_anybody_elses_whatever_umask_and_root_are(self, used: Used) -> None:
        assert stat.S_IMODE(os.stat(used.root).st_mode) == 0o755
        names = os.listdir(used.root)
        assert {"layers", "snapshots", "gate", "late", "lazy", "meta", "metadata.db", "mounter.log"} <= set(
            names
        )
        for name in names:
            status = os.lstat(os.path.join(used.root, name))
            assert not status.st_mode & 0o077, f"{name}: {stat.filemode(status.st_mode)}"
            assert status.st_uid == 0

    def test_no_mount_lets_anybody_in(self, used: Used) -> None:
        targets = [mount.target for mount in used.mounts()]
        assert len(targets) >= 4
        for target in targets:
            listed = as_nobody("ls", target)
            assert "Permission denied" in listed.stderr, target
        layer = next(iter(os.listdir(f"{used.root}/layers")))
        assert "Permission denied" in as_nobody("cat", f"{used.root}/gate/{layer}/fs/etc/shadow").stderr

    def test_no_port_is_open(self, used: Used) -> None:
        listening = set()
        for name in ("tcp", "tcp6", "udp", "udp6"):
            with open(f"/proc/net/{name}", encoding="ascii") as lines:
                rows = [line.split() for line in lines][1:]
            listening |= {row[9] for row in rows if row[3] == "0A" or name.startswith("udp")}
        assert listening, "the registry's, at least"
        for pid in used.processes:
            with suppress(FileNotFoundError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with suppress(FileNotFoundError):
                        found = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
                        assert found is None or found[1] not in listening


class TestMounts:
    def test_no_program_of_an_image_gets_rights_from_a_mount_of_ours(self, used: Used) -> None:
        kinds = {
            mount.target.removeprefix(f"{used.root}/").partition("/")[0]: mount for mount in used.mounts()
        }
        assert set(kinds) >= {"gate", "lazy", "meta"}
        for mount in used.mounts():
            assert {"nosuid", "nodev"} <= set(mount.options), mount.target
        assert kinds["gate"].read_only
        assert {"default_permissions", "allow_other"} <= set(kinds["gate"].super_options)
        assert kinds["lazy"].read_only

    def test_the_gate_takes_nothing(self, used: Used) -> None:
        calls: list[Callable[[], object]] = [
            lambda: os.mkdir(f"{used.root}/gate/a"),
            lambda: os.symlink("a", f"{used.root}/gate/b"),
            lambda: os.chmod(f"{used.root}/gate", 0o777),
        ]
        for call in calls:
            with pytest.raises(OSError, match=r"Read-only|denied"):
                call()


class TestCapabilities:
    def kept(self, pid: int, name: str) -> set[int]:
        """The capabilities in one set of a process, or of any of its threads."""
        found: set[int] = set()
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status", encoding="ascii") as lines:
                value = next(int(line.split()[1], 16) for line in lines if line.startswith(f"{name}:"))
            found |= {number for number in range(64) if value >> number & 1}
        return found

    @pytest.mark.parametrize("name", ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"])
    def test_no_thread_has_one_that_it_does_not_need(self, used: Used, name: str) -> None:
        mounter = used.node.layergate.mounter_pid
        assert self.kept(mounter, name) <= MOUNTER
        for pid in set(used.processes) - {mounter}:
            with suppress(FileNotFoundError):
                assert self.kept(pid, name) <= SERVE, pid
        assert "capabilities_not_dropped" not in used.node.layergate.log_end()


class TestContainers:
    def test_modes_and_owners_are_the_images(self, used: Used) -> None:
        listed = used.container.execute(
            "/bin/ls", "-lnd", "/etc/shadow", "/etc/setuid", "/closed", "/etc/null"
        )
        shown = {line.split()[-1]: line.split()[0:4:2] for line in listed.splitlines()}
        assert shown["/etc/shadow"] == ["-rw-------", "0"]
        assert shown["/etc/setuid"] == ["-rwsr-sr-x", "0"]
        assert shown["/closed"] == ["drwx------", "1000"]
        assert shown["/etc/null"][0] == "crw-rw-rw-"

    def test_none_can_steer_its_overlay_to_another_layer(self, used: Used) -> None:
        """What a container with all rights could set on its files, the host's root sets here."""
        key = "steered"
        chain = chain_ids([layer.diff_id for layer in IMAGE.layers])
        snapshots = ["snapshots", "--snapshotter", used.node.name]
        target = f"{used.node.directory}/steered"
        os.mkdir(target)
        answer = used.node.containerd.ctr(*snapshots, "prepare", "--mounts", key, chain[-1])
        layer = next(one.layer for one in used.node.states() if one.digest == IMAGE.layers[1].digest)
        path = f"{target}/etc/copied"
        try:
            mount_all(mounts_of(answer), target)
            with open(path, "wb") as written:
                written.write(b"its own")
            for name, value in (
                ("trusted.overlay.metacopy", b""),
                ("trusted.overlay.redirect", f"/{layer}/fs/etc/shadow".encode()),
            ):
                with suppress(OSError):
                    os.setxattr(path, name, value)
            unmount(target)
            mount_all(mounts_of(answer), target)
            with open(path, "rb") as opened:
                assert opened.read() == b"its own"
            unmount(target)
        finally:
            used.node.containerd.ctr(*snapshots, "remove", key)
            os.rmdir(target)

    def test_what_it_changes_changes_no_layer(self, used: Used) -> None:
        layer = next(one.layer for one in used.node.states() if one.digest == IMAGE.layers[1].digest)
        before = used.node.plain_files(layer)
        script = (
            "echo changed > /etc/shadow; echo more >> /closed/file; rm /etc/setuid; chown 5 /etc/capable; :"
        )
        used.node.run(used.reference, ["/bin/sh", "-c", script.replace("rm /etc/setuid;", "> /etc/setuid;")])
        after = used.node.plain_files(layer)
        assert before.items() <= after.items()
        assert after["etc/shadow"] == b"only for root\n"
        assert after["closed/file"] == b"inside\n"

    def test_remapped_ids_are_right(self, used: Used) -> None:
        """containerd copies the whole tree for such a container, as it does on its own snapshotter."""
        used.registry.require(None)
        used.node.containerd.pull(used.reference)
        used.registry.require(BearerLogin(USER, PASSWORD))
        show = ["/bin/sh", "-c", "cat /proc/self/uid_map /etc/shadow /closed/file; ls -lnR /etc /closed"]
        mapped = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"]
        # The host's /dev as a whole: of one that runc makes, it was refused /dev/null once, on overlayfs.
        options = ["--rm", *mapped, "--mount", "type=bind,src=/dev,dst=/dev,options=rbind"]
        seen = [
            used.node.containerd.ctr(
                "run", *options, "--snapshotter", name, used.reference, f"remapped-{name}", *show
            )
            for name in ("overlayfs", used.node.name)
        ]
        assert "only for root" in seen[1]
        assert " 100000 " in seen[1]
        # How many blocks a listing sums up depends on how files were written.
        ours, theirs = (re.sub(r"^total \d+$", "", one, flags=re.MULTILINE) for one in seen)
        assert ours == theirs
