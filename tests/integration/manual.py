"""Mounts by hand: `layergate` on a root of its own, and every process and mount that comes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self
from uuid import uuid4

import pytest

from mounter.swap import mounts_on
from snapshotter.manual.listing import ListedMount, list_mounts
from tests import estargz, oci
from tests.estargz import chardev, dir, file, hardlink, opaque, symlink, whiteout
from tests.integration.harness import LAYERGATE, call, mounts
from tests.integration.node import eventually
from tests.integration.processes import REPOSITORY, is_running, send, unmount_below

SLOW: Final = "[stream]\nbytes_per_second = 1\n"
"""A configuration under which a layer is never complete, but for what is asked for."""

LARGE: Final = b"".join(number.to_bytes(4, "big") for number in range(300_000))
"""What is in srv/large of the small image."""

_MARK: Final = "LAYERGATE_MANUAL"

BOTTOM: Final = [
    dir("etc/", mode=0o750, uid=3, gid=4),
    file("etc/passwd", b"root:x:0:0", mode=0o640, uid=1, xattrs={"user.note": b"\x00\xff"}),
    file("etc/hidden", b"one sees this below alone"),
    file("etc/empty"),
    dir("usr/"),
    dir("usr/share/"),
    file("usr/share/old", b"hidden by an opaque directory"),
    file("usr/suid", b"#!", mode=0o4755),
    symlink("usr/link", "../etc/passwd"),
    hardlink("usr/shadow", "etc/passwd"),
    chardev("usr/null", 1, 3, mode=0o666),
    *(file(f"usr/file{number}", bytes([number]) * (2000 + number)) for number in range(40)),
]
MIDDLE: Final = [
    dir("srv/"),
    file("srv/small", b"beta"),
    file("srv/gone", b"until somebody removes it"),
    file("srv/large", LARGE),
    whiteout("etc/hidden"),
    dir("etc/", mode=0o755),
]
TOP: Final = [
    dir("usr/", mode=0o711),
    dir("usr/share/", mtime=1_500_000_000),
    file("usr/share/new", b"the only one"),
    opaque("usr/share"),
    file("usr/file3", b"replaced"),
]


def small_image() -> oci.Image:
    """Three layers with something of everything in them; the middle one has a file of many chunks."""
    return oci.image([estargz.build(layer, chunk_size=1 << 16) for layer in (BOTTOM, MIDDLE, TOP)])


def write_layout(directory: str, image: oci.Image, *, tag: str = "test") -> str:
    """The image as an OCI layout; its SOURCE."""
    for name, data in (image.blobs | {image.digest: image.manifest}).items():
        path = os.path.join(directory, "blobs", *name.split(":"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as blob:
            blob.write(data)
    entry = {
        "mediaType": oci.MANIFEST,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    with open(os.path.join(directory, "index.json"), "w", encoding="ascii") as index:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, index)
    return f"oci:{directory}:{tag}"


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    code: int
    output: str
    errors: str


def _described(pid: int) -> str:
    """What it is, and the numbers of the system calls that its threads wait in."""
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            command = file.read().replace("\0", " ").strip()
        waiting = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/syscall", encoding="ascii") as file:
                waiting.append(file.read().split()[0])
        return f"{pid} {command} ({', '.join(waiting)})"
    except OSError as error:  # it has just ended
        return f"{pid} {error}"


def _has_mounts_below(directory: str) -> list[str]:
    """Processes with mounts below a directory in their namespace: a copy there keeps a mounter alive."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if f" {directory}/".encode() in read(f"/proc/{entry}/mountinfo"):
                found.append(_described(int(entry)))
    return found


class ManualNode:
    """A root, and mountpoints below `directory`. On exit nothing is left, whatever a test did."""

    def __init__(self, directory: str, *, config: str = "") -> None:
        self.directory = os.path.realpath(directory)
        self.root = os.path.join(self.directory, "root")
        os.makedirs(self.root, mode=0o700)
        self._config = os.path.join(self.directory, "config.toml")
        self.configure(config)
        self._mark = str(uuid4())
        self._commands: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self.kill_everything()
            for command in self._commands:
                command.communicate()
        finally:
            unmount_below(self.directory)

    def configure(self, text: str) -> None:
        """What keepers find in their configuration file, also those that run."""
        temporary = f"{self._config}.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(temporary, self._config)

    def mountpoint(self, name: str = "mnt") -> str:
        """An empty directory to mount on."""
        path = os.path.join(self.directory, name)
        os.makedirs(path, exist_ok=True)
        return path

    def start(
        self, *arguments: str, prefix: Sequence[str] = (), stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        """Start `layergate ARGUMENTS`, behind another program's words if `prefix` says so."""
        name = arguments[: 2 if arguments[0] == "cache" else 1]
        options = ["--root", self.root, *(["--config", self._config] if "mount" in name else [])]
        if name[0] in ("cache", "umount"):
            options += ["--address", f"{self.directory}/no-serve.sock"]
        command = subprocess.Popen(
            [*prefix, *LAYERGATE, *name, *options, *arguments[len(name) :]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {_MARK: self._mark},
        )
        self._commands.append(command)
        return command

    def run(self, *arguments: str, prefix: Sequence[str] = (), code: int | None = 0) -> Ended:
        """`start` and its end, which has to be `code` unless that is None."""
        command = self.start(*arguments, prefix=prefix)
        output, errors = command.communicate(timeout=100)
        assert code in (None, command.returncode), (
            f"{arguments}: {command.returncode}\n{output}{errors}{self.logs()}"
        )
        return Ended(command.returncode, output, errors)

    def listed(self) -> list[ListedMount]:
        """What `layergate mounts` would show, without the time that a command takes."""
        return list_mounts(self.root).mounts

    def state(self, mountpoint: str) -> ListedMount:
        """What it says of one mountpoint."""
        return next(one for one in self.listed() if one.mountpoint == mountpoint)

    def mount_ids(self, mountpoint: str) -> list[int]:
        """The ids of the mounts on a mountpoint, by mountinfo."""
        return [mount.id for mount in mounts_on(mountpoint)]

    def until_native(self, mountpoint: str) -> None:
        """Wait for the end of the swap."""
        eventually(lambda: self.state(mountpoint).state == "native", "the swap")

    def processes(self) -> list[int]:
        """All that came of our commands and runs."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and entry != str(os.getpid()):
                try:
                    with open(f"/proc/{entry}/environ", "rb") as environ:
                        marked = f"{_MARK}={self._mark}".encode() in environ.read().split(b"\0")
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
                if marked and is_running(int(entry)):
                    found.append(int(entry))
        return found

    def until_no_process(self) -> None:
        """Wait until nothing that came of our commands runs."""
        try:
            eventually(lambda: not self.processes(), "the end of every process")
        except AssertionError:
            running = "; ".join(map(_described, self.processes()))
            copies = ", ".join(_has_mounts_below(self.directory))
            pytest.fail(f"still running: {running}; mounts of theirs are in the namespaces of: {copies}")

    def kill_everything(self) -> None:
        """SIGKILL to all of them, at once; returns when they have ended."""
        killed: set[int] = set()
        while found := self.processes():
            killed.update(found)
            for pid in found:
                send(pid, signal.SIGKILL)
        # One that is ending has no environment any more, and may be about to let go of a lock still.
        eventually(lambda: not any(map(is_running, killed)), "the end of what was killed")

    def nothing_is_mounted(self) -> bool:
        """Whether mountinfo has nothing below our directory."""
        return mounts(self.directory) == []

    def logs(self) -> str:
        """What keepers and the mounter logged, for a test that fails."""
        text = ""
        for directory in (self.root, os.path.join(self.root, "mounts")):
            if os.path.isdir(directory):
                for name in os.listdir(directory):
                    if name.endswith(".log"):
                        with open(os.path.join(directory, name), encoding="utf-8") as log:
                            text += f"--- {name}\n{log.read()}"
        return text


def copy_layout(source: str, target: str) -> None:
    """Copy an image between layouts by skopeo, unchanged."""
    call(["skopeo", "copy", "--quiet", "--preserve-digests", f"oci:{source}", f"oci:{target}"])


def read(*parts: str) -> bytes:
    """What is in a file."""
    with open(os.path.join(*parts), "rb") as file:
        return file.read()


class Visitor:
    """A shell whose working directory is in a mount."""

    def __init__(self, directory: str) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh"], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, command: str) -> str:
        """The line that a command prints."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f'echo "$({command})"\n')
        self._shell.stdin.flush()
        return self._shell.stdout.readline().rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._shell.communicate()
