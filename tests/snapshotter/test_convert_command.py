"""`layergate convert` and `tar2estargz` as people call them: files, exit codes, and nothing left behind."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from fetcher.footer import FOOTER_SIZE, parse_footer
from tests import oci
from tests.archives import docker_save_1_10, docker_save_25, layer_tar
from tests.estargz import build, dir, file, plain
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.converting import archived
from tests.fetcher.small_disk import small_disk
from tests.integration.manual import write_layout
from tests.integration.processes import REPOSITORY

CONVERT: Final = [sys.executable, "-c", "from snapshotter.entry import main; main()", "convert"]
TAR2ESTARGZ: Final = [sys.executable, "-m", "snapshotter.cli.tar2estargz"]
LAYERS: Final = [plain([dir("a/"), file("a/1", b"one" * 1000)]), plain([file("a/2", b"two" * 1000)])]


class Commands:
    """Runs commands with a scratch directory of their own, which has to be empty afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.scratch = directory / "tmp"
        self.scratch.mkdir()
        (directory / "config.toml").touch()

    def start(self, *arguments: str, program: list[str] = CONVERT) -> subprocess.Popen[str]:
        config = ["--config", str(self.directory / "config.toml")] if program is CONVERT else []
        return subprocess.Popen(
            [*program, *config, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"TMPDIR": str(self.scratch), "DOCKER_CONFIG": str(self.directory)},
            start_new_session=True,
        )

    def __call__(self, *arguments: str, program: list[str] = CONVERT, code: int = 0) -> tuple[str, str]:
        command = self.start(*arguments, program=program)
        output, errors = command.communicate(timeout=100)
        assert command.returncode == code, f"{arguments}: {command.returncode}\n{output}{errors}"
        assert list(self.scratch.iterdir()) == []
        return output, errors


@pytest.fixture
def command(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> str:
    return write_layout(str(tmp_path / "layout"), oci.image(LAYERS))


def digest_in(output: str) -> str:
    """The digest that a summary names."""
    return output.split()[1].rstrip(":")


def is_estargz(blob: bytes) -> bool:
    return parse_footer(blob[-FOOTER_SIZE:], blob_size=len(blob)).toc_offset > 0


class TestLayers:
    def test_a_tar_becomes_a_layer(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar").write_bytes(layer_tar(LAYERS[0]))
        output, errors = command(f"{tmp_path}/in.tar", f"{tmp_path}/out")
        blob = (tmp_path / "out").read_bytes()
        assert is_estargz(blob)
        assert output.startswith(f"{tmp_path}/out {oci.digest(blob)}: ")
        assert f"DiffID {oci.digest(gzip.decompress(blob))}\n" in output
        assert "layer 1/1 (" in errors

    def test_sizes_and_priorities(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar.gz").write_bytes(plain([file("a", b"a"), file("b", os.urandom(9000))]).blob)
        (tmp_path / "first").write_text("/b\n\n# a comment\n./nowhere\n")
        options = ["--chunk-size", "4KiB", "--prioritize", f"{tmp_path}/first", "--level", "1"]
        command(*options, f"{tmp_path}/in.tar.gz", f"{tmp_path}/out")
        names = [entry.name for entry in archived(gzip.decompress((tmp_path / "out").read_bytes()))]
        assert names == ["b", ".prefetch.landmark", "a", "stargz.index.json"]

    def test_zstd_chunked(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar").write_bytes(layer_tar(LAYERS[0]))
        command("--format", "zstd:chunked", f"{tmp_path}/in.tar", f"{tmp_path}/out")
        assert (tmp_path / "out").read_bytes().endswith(b"GnUlInUx")

    def test_a_layer_is_replaced_and_anything_else_is_not(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar").write_bytes(layer_tar(LAYERS[0]))
        (tmp_path / "out").write_bytes(LAYERS[1].blob)
        command(f"{tmp_path}/in.tar", f"{tmp_path}/out")
        (tmp_path / "out").write_bytes(b"Dear Sir or Madam")
        _, errors = command(f"{tmp_path}/in.tar", f"{tmp_path}/out", code=22)
        assert errors.splitlines()[-1].endswith("out exists, and is no layer in estargz")
        assert (tmp_path / "out").read_bytes() == b"Dear Sir or Madam"

    def test_a_layer_is_no_image(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar").write_bytes(layer_tar(LAYERS[0]))
        _, errors = command(f"{tmp_path}/in.tar", f"oci:{tmp_path}/out", code=2)
        assert "is one layer" in errors
        assert not (tmp_path / "out").exists()


class TestImages:
    def test_a_layout_to_a_layout_and_nothing_to_do_again(
        self, command: Commands, tmp_path: Path, layout: str
    ) -> None:
        output, errors = command(layout, f"oci:{tmp_path}/out:v1")
        assert "2 layers converted" in output
        assert "layer 1/2" in errors
        again, _ = command(f"oci:{tmp_path}/out:v1", f"oci:{tmp_path}/out:v2")
        assert "0 layers converted, 2 kept" in again
        assert digest_in(again) == digest_in(output)

    @pytest.mark.parametrize("save", [docker_save_1_10, docker_save_25])
    def test_tar2estargz_of_an_image(
        self, command: Commands, tmp_path: Path, save: Callable[..., Path]
    ) -> None:
        if save is docker_save_25:
            docker_save_25(tmp_path / "in.tar", oci.image(LAYERS), name="docker.io/library/old:1")
        else:
            docker_save_1_10(tmp_path / "in.tar", LAYERS)
        output, _ = command(f"{tmp_path}/in.tar", f"{tmp_path}/out.tar", program=TAR2ESTARGZ)
        assert "2 layers converted" in output
        with tarfile.open(tmp_path / "out.tar") as tar:
            manifest = tar.extractfile("manifest.json")
            assert manifest is not None
            assert b'"RepoTags":["docker.io/library/old:1"]' in manifest.read()

    def test_tar2estargz_of_a_layer(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(LAYERS[0].blob)
        command(f"{tmp_path}/in", f"{tmp_path}/out", program=TAR2ESTARGZ)
        assert is_estargz((tmp_path / "out").read_bytes())

    def test_the_same_bytes_with_any_number_of_jobs(self, command: Commands, tmp_path: Path) -> None:
        layers = [plain([file(f"{number}", os.urandom(3 << 20))]) for number in range(3)]
        layout = write_layout(str(tmp_path / "layout"), oci.image(layers))
        for jobs in ("1", "2"):
            command("--jobs", jobs, layout, f"{tmp_path}/{jobs}.tar")
        assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()

    def test_a_push_with_the_users_credentials(self, command: Commands, tmp_path: Path, layout: str) -> None:
        with FaultyRegistry() as registry:
            output, _ = command(layout, f"{registry.host}/team/app:lazy")
            found = registry.manifest("team/app", "lazy")
            assert found is not None
            assert oci.digest(found[1]) == digest_in(output)


class TestErrors:
    @pytest.mark.parametrize(
        ("source", "code", "message"),
        [
            ("oci:{tmp}/nowhere", 3, "there is no directory"),
            ("{tmp}/nowhere.tar", 3, "there is no file"),
            ("{tmp}/letter", 6, "neither an archive of images nor a layer"),
            ("Upper/Case:x y", 2, "is not"),
        ],
    )
    def test_of_the_source(
        self, command: Commands, tmp_path: Path, source: str, code: int, message: str
    ) -> None:
        (tmp_path / "letter").write_bytes(b"Dear Sir or Madam" * 100)
        _, errors = command(source.format(tmp=tmp_path), f"oci:{tmp_path}/out", code=code)
        assert message in errors
        assert len(errors.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("destination", ["oci:{tmp}/letter", "docker-archive:{tmp}", "{tmp}"])
    def test_of_the_destination(
        self, command: Commands, tmp_path: Path, layout: str, destination: str
    ) -> None:
        (tmp_path / "letter").write_bytes(b"Dear Sir or Madam")
        _, errors = command(layout, destination.format(tmp=tmp_path), code=22)
        assert len(errors.splitlines()) == 1
        assert (tmp_path / "letter").read_bytes() == b"Dear Sir or Madam"

    @pytest.mark.parametrize(
        "options",
        [
            ["--level", "13"],
            ["--format", "zstd:chunked", "--level", "23"],
            ["--chunk-size", "0"],
            ["--chunk-size", "much"],
            ["--jobs", "0"],
            ["--platform", "linux"],
            ["--platform", "linux/amd64", "--all-platforms"],
        ],
    )
    def test_of_options(self, command: Commands, tmp_path: Path, layout: str, options: list[str]) -> None:
        command(*options, layout, f"oci:{tmp_path}/out", code=2)
        assert not (tmp_path / "out").exists()

    def test_a_broken_layer(self, command: Commands, tmp_path: Path) -> None:
        tar = layer_tar(plain([file("a", os.urandom(100_000))]))
        (tmp_path / "in.tar").write_bytes(tar[:50_000])
        _, errors = command(f"{tmp_path}/in.tar", f"{tmp_path}/out", code=6)
        assert len(errors.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.root
    def test_a_full_disk(self, command: Commands, tmp_path: Path) -> None:
        (tmp_path / "in.tar.gz").write_bytes(plain([file("a", os.urandom(4 << 20))]).blob)
        with small_disk(str(command.scratch), kilobytes=1024):
            _, errors = command(f"{tmp_path}/in.tar.gz", f"{tmp_path}/out", code=7)
        assert "TMPDIR" in errors
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_leaves_nothing(
        self, command: Commands, tmp_path: Path, number: signal.Signals, code: int
    ) -> None:
        layers = [plain([file(f"{at}", os.urandom(12 << 20))], level=1) for at in range(2)]
        layout = write_layout(str(tmp_path / "layout"), oci.image(layers))
        before = {path.name for path in tmp_path.iterdir()}
        process = command.start("--level", "12", layout, f"oci:{tmp_path}/out")
        assert process.stderr is not None
        while "converting" not in process.stderr.readline():
            assert process.poll() is None
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        assert errors.splitlines()[-1].startswith("layergate:"), errors  # a layer may have been begun before
        assert {path.name for path in tmp_path.iterdir()} == before
        assert list(command.scratch.iterdir()) == []


def test_a_layer_in_the_format_is_built_again_where_options_say_how(
    command: Commands, tmp_path: Path
) -> None:
    image = oci.image([build([file("a", b"a" * 9000)])])
    layout = write_layout(str(tmp_path / "layout"), image)
    for options, said in (
        ([], "1 kept"),
        (["--level", "1"], "1 layers converted"),
        (["--rebuild"], "1 layers"),
    ):
        assert said in command(*options, layout, f"oci:{tmp_path}/out")[0]
