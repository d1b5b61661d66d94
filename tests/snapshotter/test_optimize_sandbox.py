"""Unpacking an image, running it by runc, and telling what it opened and which parts it read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import pytest

from fetcher.errors import FormatError
from mounter.mountinfo import mounts_below
from snapshotter.optimize.errors import SandboxRefused
from snapshotter.optimize.residency import GAP, forget_large_files, resident_ranges
from snapshotter.optimize.run import unpack_layers
from snapshotter.optimize.sandbox import Ending, Ran, Run, run_sandbox
from snapshotter.optimize.scratch import Scratch, scratch_directory
from snapshotter.optimize.spec import ImageConfig, Workload, runtime_spec
from tests import archives, estargz, trees
from tests.estargz import dir, file, hardlink, opaque, plain, symlink, whiteout
from tests.integration.node import program_files

PAGE: Final = 4096
PROGRAMS: Final = program_files("sh", "cat", "sleep", "dd", "id", "env")


def layers(directory: Path, *made: estargz.Layer) -> list[str]:
    paths = []
    for number, layer in enumerate(made):
        path = directory / f"layer{number}"
        path.write_bytes(layer.blob)
        paths.append(str(path))
    return paths


def unpacked(directory: Path, *made: estargz.Layer) -> str:
    """The root file system of some layers; nothing of ours stays mounted for it."""
    scratch = Scratch(str(directory), tells_reads=False)
    anyio.run(unpack_layers, scratch, layers(directory, *made))
    return str(directory / "lower")


@pytest.mark.root
def test_layers_are_applied_one_after_the_other(tmp_path: Path) -> None:
    root = unpacked(
        tmp_path,
        plain(
            [
                dir("etc/", mode=0o700),
                file("etc/gone", b"1"),
                file("etc/passwd", b"web:x:1:2::/:/bin/sh\n"),
                dir("opt/"),
                file("opt/low", b"2"),
                dir("opt/deep/"),
                file("opt/deep/low", b"3"),
                file("replaced", b"4"),
                dir("was-directory/"),
                file("was-directory/x", b"5"),
                symlink("link", "opt"),
            ]
        ),
        estargz.build(
            [
                dir("etc/", mode=0o755),
                whiteout("etc/gone"),
                dir("opt/"),
                opaque("opt"),
                file("opt/high", b"6", mode=0o4755, uid=7, gid=8),
                hardlink("opt/linked", "opt/high"),
                file("replaced", b"7"),
                file("was-directory", b"8"),
            ]
        ),
    )
    found = {
        path: (entry.kind, oct(entry.mode)) for path, entry in trees.scan(root).items() if path != trees.ROOT
    }
    assert sorted(found) == [
        "etc",
        "etc/passwd",
        "link",
        "opt",
        "opt/high",
        "opt/linked",
        "replaced",
        "was-directory",
    ]
    assert found["opt/high"] == found["opt/linked"] == ("file", "0o4755")
    assert found["etc"][1] == "0o755"
    status = os.lstat(f"{root}/opt/high")
    assert (status.st_uid, status.st_gid, status.st_nlink) == (7, 8, 2)
    assert Path(root, "replaced").read_bytes() == b"7"


@pytest.mark.root
def test_no_layer_writes_outside_of_its_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = unpacked(
        tmp_path,
        plain([symlink("a", str(outside)), symlink("up", "../../.."), dir("tmp/")]),
        plain([file("a/passwd", b"x"), file("../../b", b"y"), file("up/c", b"z")]),
    )
    assert os.listdir(outside) == []
    assert Path(root, "b").read_bytes() == b"y"
    assert not (tmp_path / "b").exists()
    assert Path(root, "c").read_bytes() == b"z"


@pytest.mark.root
def test_layers_may_be_compressed_in_any_way(tmp_path: Path) -> None:
    made = [plain([file(name, name.encode())]) for name in ("gzip", "zstd", "none")]
    paths = layers(tmp_path, *made)
    Path(paths[1]).write_bytes(archives.zstd_layer_tar(made[1]))
    Path(paths[2]).write_bytes(archives.layer_tar(made[2]))
    anyio.run(unpack_layers, Scratch(str(tmp_path), tells_reads=False), paths)
    assert sorted(os.listdir(tmp_path / "lower")) == ["gzip", "none", "zstd"]


@pytest.mark.root
def test_accounts_are_read_inside_of_the_root(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), tells_reads=False)
    made = layers(
        tmp_path,
        plain([dir("etc/"), symlink("etc/passwd", "/accounts"), symlink("etc/group", "/../../etc/absent")]),
        plain([file("accounts", b"web:x:1:2::/:/bin/sh\n")]),
    )
    accounts = anyio.run(unpack_layers, scratch, made)
    assert (accounts.passwd, accounts.group) == ("web:x:1:2::/:/bin/sh\n", "")


@pytest.mark.root
def test_a_layer_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(plain([file("a", os.urandom(100_000))]).blob[:50_000])
    with pytest.raises(FormatError, match=str(path)):
        anyio.run(unpack_layers, Scratch(str(tmp_path), tells_reads=False), [str(path)])


@pytest.mark.root
def test_resident_pages_are_those_that_were_read(tmp_path: Path) -> None:
    with scratch_directory(str(tmp_path)) as scratch:
        assert scratch.tells_reads
        path, small = f"{scratch.directory}/large", f"{scratch.directory}/small"
        Path(path).write_bytes(os.urandom(2 << 20))
        Path(small).write_bytes(b"x" * 1000)
        forget_large_files(scratch.directory)
        assert resident_ranges(path) == []
        assert resident_ranges(small) is None
        code = (
            "import mmap, os, sys\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "os.pread(fd, 10, 5000)\n"
            "os.pread(fd, 10, 5000 + 8192)\n"
            "mmap.mmap(fd, 0, prot=mmap.PROT_READ)[1 << 20]\n"
            "os.pread(fd, 10, (2 << 20) - 5)\n"
        )
        subprocess.run([sys.executable, "-c", code, path], check=True)
        assert resident_ranges(path) == [
            (PAGE, 4 * PAGE),  # with the gap
            (1 << 20, (1 << 20) + PAGE),
            ((2 << 20) - PAGE, 2 << 20),
        ]
        assert 2 * PAGE < GAP < 1 << 19
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_a_scratch_file_system_goes_with_a_failure_too(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch_directory(str(tmp_path)) as scratch:
        os.rename(f"{scratch.directory}/absent", f"{scratch.directory}/present")
    assert os.listdir(tmp_path) == []
    assert mounts_below(str(tmp_path)) == []


class Machine:
    """A scratch file system with an image in it, on which one command runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = b""

    def run(
        self,
        *command: str,
        period: float = 60,
        line: str | None = None,
        more: Sequence[estargz.Entry] = (),
        workload: Callable[..., Workload] = Workload,
    ) -> Ran:
        with scratch_directory(str(self.directory)) as scratch:
            made = layers(self.directory, plain([*PROGRAMS, dir("srv/"), *more]))
            accounts = anyio.run(unpack_layers, scratch, made)
            spec = runtime_spec(
                ImageConfig(),
                workload(command=command),
                root="root",
                passwd=accounts.passwd,
                group=accounts.group,
            )
            wish = Run(spec=spec, period=period, line=line, output=self._took)
            try:
                return anyio.run(run_sandbox, scratch, wish)
            finally:
                assert mounts_below(os.path.join(scratch.directory, "root")) == []
                assert os.listdir(os.path.join(scratch.directory, "runc")) == []

    def _took(self, data: bytes) -> None:
        self.output += data


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.containerd
def test_a_workload_that_ends_by_itself(machine: Machine) -> None:
    files = [file("srv/one", b"1"), file("srv/two", b"2"), file("srv/three", b"3")]
    ran = machine.run("/bin/sh", "-c", "cat /srv/two; cat /srv/one; exit 3", more=files)
    assert (ran.ending, ran.status, ran.lost) == (Ending.BY_ITSELF, 3, False)
    assert machine.output == b"21"
    assert ran.said == "21"
    paths = [opened.path for opened in ran.files]
    assert [path for path in paths if path.startswith("srv/")] == ["srv/two", "srv/one"]
    assert paths[0] == "bin/sh"


@pytest.mark.containerd
def test_which_parts_of_a_large_file_are_read(machine: Machine) -> None:
    large = file("srv/large", os.urandom(4 << 20))
    ran = machine.run(
        "/bin/dd", "if=/srv/large", "of=/dev/null", "bs=4096", "skip=256", "count=2", more=[large]
    )
    assert ran.status == 0
    (found,) = [opened for opened in ran.files if opened.path == "srv/large"]
    assert found.ranges == [(1 << 20, (1 << 20) + 2 * PAGE)]
    # What is not large was read wholly, for all that anybody knows.
    assert [opened.ranges for opened in ran.files if opened.path == "bin/dd"] == [None]


@pytest.mark.containerd
def test_a_workload_that_never_ends_is_ended_after_its_time(machine: Machine) -> None:
    ran = machine.run("/bin/sh", "-c", "cat /srv/one; sleep 1000", period=1.5, more=[file("srv/one", b"1")])
    assert (ran.ending, ran.status) == (Ending.PERIOD, None)
    assert "srv/one" in [opened.path for opened in ran.files]


@pytest.mark.containerd
@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_workload_ends_with_the_line_that_is_waited_for(machine: Machine, stream: str) -> None:
    # Both lines on one of them: runc copies each of the two for itself, in no order.
    script = f"exec >&{stream}; echo not; echo now ready: 1; sleep 1000"
    ran = machine.run("/bin/sh", "-c", script, line="ready")
    assert (ran.ending, ran.status) == (Ending.LINE, None)
    assert machine.output == b"not\nnow ready: 1\n"


@pytest.mark.containerd
def test_what_is_no_program_is_refused_by_name(machine: Machine) -> None:
    with pytest.raises(SandboxRefused, match="/bin/absent"):
        machine.run("/bin/absent")


@pytest.mark.containerd
def test_user_environment_and_directory(machine: Machine) -> None:
    def workload(command: tuple[str, ...]) -> Workload:
        return Workload(command=command, environment=("GREETING=hello",))

    ran = machine.run("/bin/sh", "-c", "echo $GREETING; id -u; pwd", workload=workload)
    assert ran.status == 0
    assert machine.output == b"hello\n0\n/\n"


@pytest.mark.containerd
def test_the_sandbox_has_no_network_but_loopback(machine: Machine) -> None:
    ran = machine.run("/bin/sh", "-c", "cat /proc/net/dev")
    assert ran.status == 0
    names = [line.split(b":")[0].strip() for line in machine.output.splitlines()[2:]]
    assert b"lo" in names
    assert b"eth0" not in names


@pytest.mark.containerd
def test_nothing_is_left_when_it_is_cancelled(tmp_path: Path) -> None:
    async def run(scratch: Scratch, spec: dict[str, object]) -> None:
        with anyio.move_on_after(1.5):
            await run_sandbox(scratch, Run(spec=spec, period=1000))

    with scratch_directory(str(tmp_path)) as scratch:
        accounts = anyio.run(unpack_layers, scratch, layers(tmp_path, plain(PROGRAMS)))
        spec = runtime_spec(
            ImageConfig(),
            Workload(command=("/bin/sleep", "86399")),
            root="root",
            passwd=accounts.passwd,
            group=accounts.group,
        )
        anyio.run(run, scratch, spec)
        assert mounts_below(os.path.join(scratch.directory, "root")) == []
        assert os.listdir(os.path.join(scratch.directory, "runc")) == []
    found = subprocess.run(["pgrep", "-f", "^/bin/sleep 86399"], capture_output=True, check=False)
    assert found.stdout == b""
