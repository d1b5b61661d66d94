"""Commands that serve's fork server runs: the caller cannot tell, but by the clock."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from mounter.forks import start_fork_server
from snapshotter.commands import serve_commands
from snapshotter.entry import commands_socket
from tests.integration.processes import REPOSITORY

# Without site-packages, so that nothing but handing over can do a pull: click is not to be had.
BARE = f"import sys; sys.path.append({REPOSITORY!r}); from snapshotter.entry import main; main()"
CALLER = (sys.executable, "-S", "-c", BARE)
FULL_CALLER = (sys.executable, "-m", "snapshotter.entry")


@pytest.fixture
def address(socket_directory: str) -> Iterator[str]:
    """Where commands are served, as a serve would do it."""
    path = f"{socket_directory}/s"
    start_fork_server([])
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve_commands(path)):
        yield path


@contextmanager
def deaf(path: str) -> Iterator[socket.socket]:
    """A socket where one connects and is never answered: containerd, for a pull that is to take long."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(60)
        yield listener


def call(
    *arguments: str,
    caller: Sequence[str] = CALLER,
    environment: Mapping[str, str] | None = None,
    directory: str = REPOSITORY,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*caller, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env={**os.environ, **(environment or {})},
    )


def children_of_nobody(words: str) -> list[int]:
    """Processes with these words in their title."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                title = Path(f"/proc/{name}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if title.startswith(b"layergate:") and words.encode() in title:
                found.append(int(name))
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_the_socket_is_roots_alone_and_goes_with_the_server(socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    start_fork_server([])
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve_commands(path)):
        found = os.stat(commands_socket(path))
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
    assert os.listdir(socket_directory) == []


def test_output_and_exit_code_come_back(address: str) -> None:
    helped = call("pull", "--address", address, "--help")
    assert helped.returncode == 0
    assert "Pull the image REF through containerd" in helped.stdout
    assert helped.stderr == ""
    wrong = call("pull", f"--address={address}", "--containerd")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "Option '--containerd' requires an argument" in wrong.stderr


def test_an_error_is_a_line_and_its_own_exit_code(address: str, socket_directory: str) -> None:
    nobody = f"{socket_directory}/nobody"
    failed = call("pull", "--address", address, "--containerd", nobody, "localhost:1/some/image")
    assert failed.returncode == 9
    assert failed.stderr.startswith("layergate: ")
    assert nobody in failed.stderr
    assert "Traceback" not in failed.stderr


def test_directory_and_environment_are_the_callers(address: str, tmp_path: Path) -> None:
    (tmp_path / "here.toml").write_text("[nonsense]\n")
    failed = call(
        "pull", "--address", address, "--config", "here.toml", "localhost:1/some/image",
        directory=str(tmp_path),
    )  # fmt: skip
    assert failed.returncode == 2
    assert "nonsense" in failed.stderr
    narrow = call("pull", "--address", address, "--help", environment={"COLUMNS": "60"})
    wide = call("pull", "--address", address, "--help", environment={"COLUMNS": "78"})
    assert len(narrow.stdout.splitlines()) > len(wide.stdout.splitlines())


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command(address: str, socket_directory: str, number: signal.Signals) -> None:
    name = f"localhost:1/some/image-{number}"
    with deaf(f"{socket_directory}/c") as listener:
        command = [*CALLER, "pull", "--address", address, "--containerd", f"{socket_directory}/c", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as caller:
            with listener.accept()[0]:
                (forked,) = children_of_nobody(name)
                caller.send_signal(number)
                assert caller.wait(60) == 128 + number
            assert caller.stderr is not None
            assert caller.stderr.read().startswith((b"layergate: interrupted", b"layergate: terminated"))
    until(lambda: not os.path.exists(f"/proc/{forked}"))


def test_a_signal_that_the_caller_ignores_ends_nothing(address: str, socket_directory: str) -> None:
    name = "localhost:1/some/image-nohup"
    with deaf(f"{socket_directory}/c") as listener:
        command = [*CALLER, "pull", "--address", address, "--containerd", f"{socket_directory}/c", name]
        with subprocess.Popen(["nohup", *command], stderr=subprocess.DEVNULL) as caller, listener.accept()[0]:
            (forked,) = children_of_nobody(name)
            caller.send_signal(signal.SIGHUP)
            with pytest.raises(subprocess.TimeoutExpired):
                caller.wait(0.3)
            assert children_of_nobody(name) == [forked]
            caller.terminate()
            assert caller.wait(60) == 128 + signal.SIGTERM
    until(lambda: not os.path.exists(f"/proc/{forked}"))


def test_a_caller_that_is_killed_takes_its_command_along(address: str, socket_directory: str) -> None:
    name = "localhost:1/some/image-killed"
    with deaf(f"{socket_directory}/c") as listener:
        command = [*CALLER, "pull", "--address", address, "--containerd", f"{socket_directory}/c", name]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as caller, listener.accept()[0]:
            caller.kill()
            caller.wait(60)
            until(lambda: not children_of_nobody(name))


def test_a_command_that_is_killed_is_said_to_be(address: str, socket_directory: str) -> None:
    name = "localhost:1/some/image-shot"
    with deaf(f"{socket_directory}/c") as listener:
        command = [*CALLER, "pull", "--address", address, "--containerd", f"{socket_directory}/c", name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as caller:
            with listener.accept()[0]:
                (forked,) = children_of_nobody(name)
                os.kill(forked, signal.SIGKILL)
            assert caller.wait(60) == 1
            assert caller.stderr is not None
            assert "was killed" in caller.stderr.read()


def test_a_command_goes_on_without_its_server(socket_directory: str) -> None:
    path, name = f"{socket_directory}/s", "localhost:1/some/image-alone"
    start_fork_server([])
    with deaf(f"{socket_directory}/c") as listener:
        command = [*CALLER, "pull", "--address", path, "--containerd", f"{socket_directory}/c", name]
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve_commands(path)):
            caller = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            connection = listener.accept()[0]
        with caller, connection:
            assert children_of_nobody(name)
            caller.terminate()
            assert caller.wait(60) == 128 + signal.SIGTERM


def test_where_nobody_serves_the_command_runs_by_itself(socket_directory: str) -> None:
    path = f"{socket_directory}/s"
    assert call("pull", "--address", path, "--help", caller=FULL_CALLER).returncode == 0
    assert "No module named 'click'" in call("pull", "--address", path, "--help").stderr


def test_a_serve_of_another_version_is_left_alone(address: str) -> None:
    other = BARE.replace(
        "from snapshotter", "import fetcher.version as v; v.VERSION = 'other'; from snapshotter"
    )
    ran = call("pull", "--address", address, "--help", caller=(sys.executable, "-S", "-c", other))
    assert "No module named 'click'" in ran.stderr


def test_packets_that_are_no_request_harm_nobody(address: str) -> None:
    for packet in (b"", b"{}", b"\xff" * 1000):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(commands_socket(address))
            connection.send(packet)
            connection.settimeout(60)
            assert connection.recv(64) == b""
    assert call("pull", "--address", address, "--help").returncode == 0
