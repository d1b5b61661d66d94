"""The real parts that integration tests, demo and benchmarks run: registry, containerd, layergate.

Each is a context manager that runs a private instance below a directory given to it, and
that on exit ends every process and undoes every mount which came of it, also after a failure.

    with Registry(f"{base}/registry") as registry, Layergate(f"{base}/layergate") as layergate:
        with Containerd(f"{base}/containerd", snapshotters={"layergate": layergate.socket}) as containerd:
            layergate.pull(containerd, registry.push(layout, "python"))
            print(containerd.run(reference, ["python3", "--version"], snapshotter="layergate"))

Directories should be short: a unix socket's path has at most 107 bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Self
from uuid import uuid4

from mounter.client import Mounter
from mounter.errors import MounterError
from tests.integration.processes import REPOSITORY, Daemon, Mount, is_running, mounts, send, unmount_below
from tests.integration.throttle import Throttle

__all__ = [
    "LAYERGATE",
    "CommandFailed",
    "Container",
    "Containerd",
    "Layergate",
    "Mount",
    "Registry",
    "Throttle",
    "call",
    "fresh_file_system",
    "mounts",
]

_REGISTRY = """\
version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {directory}/data}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
"""

_CONTAINERD = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{directory}/containerd.sock"
"""

_PROXY_PLUGIN = """\
[proxy_plugins.{name}]
type = "snapshot"
address = "{socket}"
"""


LAYERGATE: Final = (sys.executable, "-c", "from snapshotter.entry import main; main()")
"""The command `layergate`, of this checkout and this interpreter."""


_LOGGER: Final = """\
#!/bin/sh
# The shim has standard output at 3 and standard error at 4, and waits until 5 is closed. Both end with the
# process; the shim's SIGTERM comes while they may not have been read to their end.
trap '' TERM
exec 5>&-
/bin/cat <&3 >>"$2" &
/bin/cat <&4 >>"$2.errors" &
wait
"""


_LOOKS: Final = 5
"""How often a directory is counted whose files go meanwhile."""


class CommandFailed(Exception):
    """A program ended with an error; the message has what it printed."""

    def __init__(self, command: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: exit status {returncode}\n{output}")
        self.command = list(command)
        self.returncode = returncode
        self.output = output


def call(command: Sequence[str], *, timeout: float = 300) -> str:
    """Run a program to its end, in the checkout; its standard output. Raises CommandFailed.

    After `timeout` seconds it is killed: TimeoutExpired.
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False, cwd=REPOSITORY
    )
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        raise CommandFailed(command, done.returncode, output + done.stderr.decode(errors="replace"))
    return output


def disk_use(directory: str) -> int:
    """Bytes allocated below a directory, on its own file system."""
    os.sync()
    command = ["du", "--summarize", "--block-size=1", "--one-file-system", directory]
    looks = 0
    while True:
        try:
            return int(call(command).split()[0])
        except CommandFailed:
            looks += 1
            if looks == _LOOKS:
                raise
            time.sleep(1)


def _taken(path: str) -> str:
    """The text of a file, which goes; nothing if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return ""
    os.unlink(path)
    return text


@contextlib.contextmanager
def fresh_file_system(directory: str, *, size: int = 16 << 30, inodes: int | None = None) -> Iterator[str]:
    """An ext4 with a journal on a loop device, mounted at `directory`; gone afterwards.

    Its image is sparse and lies beside the directory; it takes `inodes` files, by default one in 16 KiB.
    Creating files there costs the same in every run, whatever was deleted on the machine's own file system
    before.
    """
    image = directory.rstrip("/") + ".ext4"
    os.makedirs(directory)
    with open(image, "wb") as file:
        file.truncate(size)
    try:
        number = [] if inodes is None else ["-N", str(inodes)]
        lazily = ["-E", "lazy_itable_init=1,lazy_journal_init=1"]
        call(["mkfs.ext4", "-q", "-F", "-m", "0", *number, *lazily, image])
        call(["mount", "-o", "loop", image, directory])
        try:
            yield directory
        finally:
            unmount_below(directory)
    finally:
        os.unlink(image)
        os.rmdir(directory)


class Registry:
    """Debian's docker-registry on 127.0.0.1, at a free port unless one is given; plain HTTP."""

    def __init__(self, directory: str, *, port: int = 0) -> None:
        os.makedirs(directory, exist_ok=True)
        config = os.path.join(directory, "config.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(_REGISTRY.format(directory=directory, port=port))
        self._daemon = Daemon(
            ["docker-registry", "serve", config], log=os.path.join(directory, "registry.log")
        )
        self.host = ""
        """"127.0.0.1:port", once it runs."""

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        try:
            self._daemon.wait_until(self._listening)
        except BaseException:
            self._daemon.__exit__()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._daemon.__exit__()

    def _listening(self) -> bool:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", self._daemon.log_end())
        self.host = found[1] if found else ""
        return bool(found)

    def push(self, layout: str, repository: str, *, tag: str = "latest") -> str:
        """Push the one image of the OCI layout in the directory `layout`, unchanged; its reference here."""
        reference = f"{self.host}/{repository}:{tag}"
        command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        call([*command, f"oci:{layout}", f"docker://{reference}"])
        return reference


class Containerd:
    """A private containerd without CRI; `snapshotters` are proxy plugins, name to socket."""

    def __init__(self, directory: str, *, snapshotters: Mapping[str, str] | None = None) -> None:
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.address = os.path.join(directory, "containerd.sock")
        config = os.path.join(directory, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(_CONTAINERD.format(directory=directory))
            for name, address in (snapshotters or {}).items():
                file.write(_PROXY_PLUGIN.format(name=name, socket=address))
        self._logger = os.path.join(directory, "logger")
        with open(self._logger, "w", encoding="utf-8") as file:
            file.write(_LOGGER)
        os.chmod(self._logger, 0o755)
        self._daemon = Daemon(
            ["containerd", "--config", config], log=os.path.join(directory, "containerd.log")
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._remove_containers()
        finally:
            try:
                self._daemon.__exit__()
            finally:
                unmount_below(self.directory)

    def start(self) -> None:
        """Start containerd and wait until it answers, again after `stop` with its data and containers."""
        self._daemon.start()
        try:
            self._daemon.wait_until(self._answers)
        except BaseException:
            self._daemon.__exit__()
            raise

    def stop(self) -> None:
        """Stop containerd; its containers run on."""
        self._daemon.stop()

    def kill9(self) -> None:
        """SIGKILL to containerd alone."""
        self._daemon.kill9()

    def kill9_all(self) -> None:
        """SIGKILL to containerd, its shims and all containers."""
        self._daemon.kill9_all()

    def _answers(self) -> bool:
        try:
            self.ctr("version")
        except CommandFailed:
            return False
        return True

    def ctr(self, *arguments: str, program: str = "ctr", timeout: float = 300) -> str:
        """What `ctr ARGUMENTS` (or `ctr-remote`) prints. Raises CommandFailed."""
        return call([program, "--address", self.address, *arguments], timeout=timeout)

    def pull(self, reference: str, *, snapshotter: str = "overlayfs") -> None:
        """Pull an image the ordinary way, by plain HTTP."""
        self.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, reference)

    def run(self, image: str, command: Sequence[str] = (), *, snapshotter: str = "overlayfs") -> str:
        """Run a container to its end and remove it; what it prints. Raises CommandFailed, with its errors."""
        name = f"run-{uuid4().hex[:12]}"
        return self.printed(["run", "--rm", "--snapshotter", snapshotter], [image, name, *command], name=name)

    def printed(self, options: Sequence[str], operands: Sequence[str], *, name: str) -> str:
        """What the process `name` prints that `ctr OPTIONS OPERANDS` runs. Raises CommandFailed, with errors.

        A logger of the shim's writes it into files. Of what goes through FIFOs ctr 1.6 loses all now and then
        on a busy machine (it gives up one that it has not opened when the process ends), and the shim, where
        it writes a file itself, standard error (it closes the file when standard output ends).
        """
        path = os.path.join(self.directory, f"output-{name}")
        try:
            self.ctr(*options, "--log-uri", f"binary://{self._logger}?into={path}", *operands)
        except CommandFailed as failure:
            printed = "".join((_taken(path), _taken(f"{path}.errors"), failure.output))
            raise CommandFailed(failure.command, failure.returncode, printed) from None
        _taken(f"{path}.errors")
        return _taken(path)

    @contextlib.contextmanager
    def container(
        self, image: str, command: Sequence[str] = ("sleep", "infinity"), *, snapshotter: str = "overlayfs"
    ) -> Iterator[Container]:
        """A container that runs in the background, and is removed on exit, or if its start fails half-way."""
        name = f"container-{uuid4().hex[:12]}"
        options = ["--detach", "--null-io", "--snapshotter", snapshotter]
        try:
            self.ctr("run", *options, image, name, *command)
            yield Container(self, name)
        finally:
            self._remove_container(name)

    @contextlib.contextmanager
    def mounted(self, image: str, directory: str, *, snapshotter: str = "overlayfs") -> Iterator[str]:
        """A pulled image's root file system, read-only at `directory`."""
        os.makedirs(directory, exist_ok=True)
        self.ctr("images", "mount", "--snapshotter", snapshotter, image, directory)
        try:
            yield directory
        finally:
            self.ctr("images", "unmount", "--rm", "--snapshotter", snapshotter, directory)

    def _remove_containers(self) -> None:
        if not self._daemon.running and self._daemon.descendants():
            # Only containerd and its shims can take containers down without leaving cgroups and sockets.
            self.start()
        if self._daemon.running:
            self.remove_containers()

    def remove_containers(self) -> None:
        """Remove every container, and its snapshot with it, also those whose removal has failed before."""
        for name in self.ctr("containers", "list", "--quiet").split():
            self._remove_container(name)

    def _remove_container(self, name: str) -> None:
        # Each step may find its work done: the task may have ended, containerd may have been stopped.
        for step in (["tasks", "delete", "--force", name], ["containers", "delete", name]):
            with contextlib.suppress(CommandFailed):
                self.ctr(*step)


class Container:
    """A running container."""

    def __init__(self, containerd: Containerd, name: str) -> None:
        self._containerd = containerd
        self.name = name

    @property
    def pid(self) -> int:
        """Its first process, as the host numbers it."""
        for line in self._containerd.ctr("tasks", "list").splitlines()[1:]:
            name, pid, *_ = line.split()
            if name == self.name:
                return int(pid)
        raise LookupError(f"container {self.name} has no task")

    @property
    def root(self) -> str:
        """Its root directory, as the host can read it."""
        return f"/proc/{self.pid}/root"

    def execute(self, *command: str) -> str:
        """What a further process in the container prints. Raises CommandFailed, with its errors."""
        name = f"exec-{uuid4().hex[:12]}"
        return self._containerd.printed(
            ["tasks", "exec", "--exec-id", name], [self.name, *command], name=name
        )


class Layergate:
    """`layergate serve` with its root below `directory`; `config` is the text of its config file."""

    def __init__(self, directory: str, *, config: str = "", program: Sequence[str] = LAYERGATE) -> None:
        os.makedirs(directory, exist_ok=True)
        self._program = list(program)
        self.root = os.path.join(directory, "root")
        self.socket = os.path.join(directory, "layergate.sock")
        path = os.path.join(directory, "config.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(config)
        serve = ["serve", "--root", self.root, "--address", self.socket, "--config", path]
        self._daemon = Daemon([*program, *serve], log=os.path.join(directory, "layergate.log"))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._daemon.stop()
            with contextlib.suppress(MounterError):
                Mounter(self.root).stop()
                self._daemon.wait_for_descendants(patience=3)
            self._daemon.__exit__()
        finally:
            unmount_below(self.root)

    def start(self) -> None:
        """Start `serve` and wait until its socket takes connections."""
        self._daemon.start()
        try:
            self._daemon.wait_until(lambda: _accepts(self.socket))
        except BaseException:
            self.__exit__()
            raise

    def stop(self) -> None:
        """Stop `serve` in good order; the mounter stays."""
        self._daemon.stop()

    def kill9(self) -> None:
        """SIGKILL to `serve` alone; the mounter stays."""
        self._daemon.kill9()

    def kill9_mounter(self) -> None:
        """SIGKILL to the mounter; returns when it has ended."""
        pid = self.mounter_pid
        send(pid, signal.SIGKILL)
        while is_running(pid):
            time.sleep(0.01)

    def kill9_all(self) -> None:
        """SIGKILL to every process of layergate; the mounts stay as they are."""
        self._daemon.kill9_all()

    def end_everything(self) -> None:
        """End every process of layergate, and leave the mounts as they are."""
        self._daemon.stop()
        self._daemon.end_descendants()

    @property
    def running(self) -> bool:
        """Whether `serve` runs."""
        return self._daemon.running

    @property
    def pid(self) -> int:
        """The process id of `serve`."""
        return self._daemon.pid

    @property
    def mounter_pid(self) -> int:
        """The process that listens on the mounter's socket."""
        return Mounter(self.root).pid()

    @property
    def descendants(self) -> list[int]:
        """The process ids of the mounter and the fetch workers."""
        return self._daemon.descendants()

    def log_end(self) -> str:
        """The end of the log of `serve`."""
        return self._daemon.log_end()

    def command(self, *arguments: str, timeout: float = 300) -> str:
        """What `layergate ARGUMENTS` prints. Raises CommandFailed."""
        return call([*self._program, *arguments], timeout=timeout)

    def pull(self, containerd: Containerd, reference: str, *, snapshotter: str = "layergate") -> str:
        """`layergate pull` into that containerd; what it prints."""
        options = ["--containerd", containerd.address, "--snapshotter", snapshotter, "--plain-http"]
        options += ["--address", self.socket]
        return self.command("pull", *options, reference)

    def status(self) -> dict[str, object]:
        """What `layergate status --json` says."""
        status: dict[str, object] = json.loads(self.command("status", "--json", "--address", self.socket))
        return status


def _accepts(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(address) == 0
