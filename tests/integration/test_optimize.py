"""`layergate optimize`: what a workload opened stands first, and a lazy container waits for none of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio
import pytest

from fetcher.access_order import access_order
from fetcher.blob import FileBlob
from fetcher.manifest import parse_manifest, promised_toc
from fetcher.opening import fetch_toc
from fetcher.record import Record, parse_record
from fetcher.toc import parse_toc
from fetcher.tree import LayerTree, build_tree
from tests import oci
from tests.estargz import build, dir, file, hardlink, plain, symlink, whiteout
from tests.faulty_registry import FaultyRegistry
from tests.integration import recipe
from tests.integration.harness import LAYERGATE, CommandFailed, Registry, call, mounts
from tests.integration.image import RealImage
from tests.integration.lazy import status, until_prefetched
from tests.integration.node import ON_DEMAND, Node, eventually, program_files, running_node
from tests.integration.processes import REPOSITORY

pytestmark = pytest.mark.containerd

PROGRAMS: Final = program_files("sh", "cat", "sleep")
READ: Final = ("/bin/sh", "-c", "cat /srv/second /srv/first /linked; echo done")
BIG: Final = b"0123456789abcdef" * (9 << 18)
"""36 MiB in nine chunks."""


def image(tag: str) -> oci.Image:
    """A plain layer of programs, an eStargz one with the data, and one that hides and links."""
    words = ("unread", "first", "second", "hidden")
    return oci.image(
        [
            plain([*PROGRAMS, dir("etc/"), file("etc/tag", tag.encode()), file("etc/unread", b"u" * 5000)]),
            build(
                [
                    dir("srv/"),
                    *(file(f"srv/{word}", f"{word} {tag}\n".encode()) for word in words),
                    file("srv/target", b"linked\n"),
                    hardlink("srv/twin", "srv/target"),
                ]
            ),
            build([symlink("linked", "srv/twin"), dir("srv/"), whiteout("srv/hidden")]),
        ],
        command=READ,
    )


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/optimize", config=f"{ON_DEMAND}[record]\nenabled = true\n") as node:
        yield node


@pytest.fixture
def scratch(directory: str) -> str:
    os.makedirs(f"{directory}/tmp")
    return directory


def optimize(scratch: str, *arguments: str) -> str:
    """What `layergate optimize` prints; its temporary directory is empty afterwards. Raises CommandFailed."""
    try:
        return call(["env", f"TMPDIR={scratch}/tmp", *LAYERGATE, "optimize", *arguments])
    finally:
        nothing_is_left(scratch)


def nothing_is_left(scratch: str) -> None:
    assert os.listdir(f"{scratch}/tmp") == []
    assert [mount.target for mount in mounts(f"{scratch}/tmp")] == []


def trees(layout: str) -> list[LayerTree]:
    """The trees of the layers of the one image in a layout."""
    blobs = Path(layout, "blobs", "sha256")
    index = json.loads(Path(layout, "index.json").read_bytes())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    found = []
    for layer in parse_manifest((blobs / digest).read_bytes()).layers:
        blob = FileBlob(str(blobs / layer.digest.removeprefix("sha256:")))

        async def read(
            blob: FileBlob = blob, promised: object = promised_toc(layer.annotations)
        ) -> LayerTree:
            assert isinstance(promised, str)
            toc = await fetch_toc(blob, size=None, promised=promised)
            return build_tree(parse_toc(toc.json), end=toc.offset)

        found.append(anyio.run(read))
    return found


def first(tree: LayerTree) -> list[str]:
    """The files in front of a layer's landmark, in their order."""
    if tree.landmark is None:
        return []
    nodes = [node for node in tree.regular_files() if node.chunks[0].offset < tree.landmark]
    return [node.path for node in sorted(nodes, key=lambda node: node.chunks[0].offset)]


def record(path: str) -> Record:
    return parse_record(Path(path).read_bytes(), name=path)


@pytest.mark.parametrize("layer_format", ["estargz", "zstd:chunked"])
def test_files_stand_first_in_the_order_of_their_opens_and_nothing_else_does(
    shelf: FaultyRegistry, scratch: str, layer_format: str
) -> None:
    source = shelf.add_image("optimize/order", image("order"))
    options = ["--format", layer_format, "--record-out", f"{scratch}/r"]
    said = optimize(scratch, *options, source, f"oci:{scratch}/out")
    assert "exit status 0" in said
    bottom, middle, top = map(first, trees(f"{scratch}/out"))
    paths = [opened.path for opened in record(f"{scratch}/r").files]
    assert [path for path in paths if path.startswith("srv/")] == ["srv/second", "srv/first", "srv/twin"]
    # A hard link brings the file that it links to.
    assert middle == ["srv/second", "srv/first", "srv/target"]
    assert bottom[0] == "bin/sh"
    assert "bin/cat" in bottom
    assert not {"etc/tag", "etc/unread", "bin/sleep"} & set(bottom)
    assert top == []


def test_a_lazy_container_of_the_optimized_image_waits_for_nothing(
    node: Node, registry: Registry, shelf: FaultyRegistry, scratch: str
) -> None:
    source = shelf.add_image("optimize/lazy", image("lazy"))
    optimize(scratch, source, f"oci:{scratch}/out")
    reference = registry.push(f"{scratch}/out", "optimized")
    node.pull(reference)
    until_prefetched(node.layergate)
    before = status(node.layergate).on_demand.count
    assert node.run(reference) == "second lazy\nfirst lazy\nlinked\ndone\n"
    assert status(node.layergate).on_demand.count == before
    # And what was not recorded is still asked for.
    assert node.run(reference, ["/bin/cat", "/etc/unread"]) == "u" * 5000
    assert status(node.layergate).on_demand.count == before + 1


def test_the_real_image(node: Node, registry: Registry, image: RealImage, scratch: str) -> None:
    said = optimize(
        scratch, "--level", "1", "--record-out", f"{scratch}/r", f"oci:{image.plain}", f"oci:{scratch}/out"
    )
    assert "ended by itself with exit status 0" in said
    made = record(f"{scratch}/r")
    found = trees(f"{scratch}/out")
    order = access_order(made.files, found, chunk_size=4 << 20)
    assert order.unknown == ()
    for tree, paths in zip(found, order.layers, strict=True):
        wanted = [tree.nodes[path].path for path in paths if tree.nodes[path].chunks]
        assert first(tree) == wanted
    assert sum(map(len, order.layers)) > 200
    by_path = {opened.path: opened for opened in made.files}
    (openblas,) = [path for path in by_path if "libopenblas" in path]
    ranges = by_path[openblas].ranges
    assert ranges is not None
    assert 0 < sum(end - start for start, end in ranges) < 20 << 20

    reference = registry.push(f"{scratch}/out", "optimized-python")
    node.pull(reference)
    until_prefetched(node.layergate)
    before = status(node.layergate)
    assert node.run(reference) == recipe.OUTPUT
    after = status(node.layergate)
    assert after.on_demand.count == before.on_demand.count
    assert after.fuse.read == before.fuse.read


def test_a_record_is_used_again_without_a_run(shelf: FaultyRegistry, scratch: str) -> None:
    source = shelf.add_image("optimize/again", image("again"))
    optimize(scratch, "--record-out", f"{scratch}/r", source, f"oci:{scratch}/run")
    said = optimize(scratch, "--record-in", f"{scratch}/r", source, f"oci:{scratch}/again")
    assert "exit status" not in said
    for name in ("index.json", "oci-layout"):
        assert Path(scratch, "run", name).read_bytes() == Path(scratch, "again", name).read_bytes()


def test_several_workloads_are_merged(shelf: FaultyRegistry, scratch: str) -> None:
    source = shelf.add_image("optimize/merged", image("merged"))
    for word in ("first", "unread"):
        optimize(
            scratch,
            "--record-out",
            f"{scratch}/{word}",
            source,
            f"oci:{scratch}/out-{word}",
            "--",
            *("/bin/cat", f"/srv/{word}"),
        )
    records = ["--record-in", f"{scratch}/first", "--record-in", f"{scratch}/unread"]
    # With a command it is run too, and comes first.
    command = ["--", "/bin/cat", "/srv/second"]
    optimize(scratch, *records, "--record-out", f"{scratch}/all", source, f"oci:{scratch}/out", *command)
    assert first(trees(f"{scratch}/out")[1]) == ["srv/second", "srv/first", "srv/unread"]
    assert record(f"{scratch}/all").header.workloads == 3


def test_what_serve_recorded_is_used_without_a_run(node: Node, shelf: FaultyRegistry, scratch: str) -> None:
    made = image("served")
    reference = shelf.add_image("optimize/served", made)
    node.pull(reference)
    node.run(reference, ["/bin/cat", "/srv/second"])
    root = ["--root", node.layergate.root]

    def recorded() -> bool:
        listed = json.loads(node.layergate.command("record", "ls", "--json", *root))["records"]
        return any(one["kind"] == "opens" and reference in one["images"] for one in listed)

    eventually(recorded, "the record")
    said = optimize(scratch, *root, "--from-image", reference, reference, f"oci:{scratch}/out")
    assert "exit status" not in said
    bottom, middle, _ = map(first, trees(f"{scratch}/out"))
    assert "srv/second" in middle
    assert "srv/first" not in middle
    assert "bin/cat" in bottom
    with pytest.raises(CommandFailed, match=r"nothing is recorded of example\.org/other") as caught:
        optimize(scratch, *root, "--from-image", "example.org/other", reference, f"oci:{scratch}/none")
    assert caught.value.returncode == 3
    assert not os.path.exists(f"{scratch}/none")


def test_a_large_file_of_which_little_is_read_is_left_behind(shelf: FaultyRegistry, scratch: str) -> None:
    program = file("bin/dd", Path("/bin/dd").read_bytes(), mode=0o755)
    made = oci.image([plain([*PROGRAMS, program, dir("srv/"), file("srv/big", BIG), file("srv/next", b"n")])])
    source = shelf.add_image("optimize/big", made)
    script = "dd if=/srv/big of=/dev/null bs=4096 count=1 2>/dev/null; cat /srv/next"
    said = optimize(scratch, source, f"oci:{scratch}/part", "--", "/bin/sh", "-c", script)
    assert "left behind, as little of them is read: srv/big" in said
    (found,) = map(first, trees(f"{scratch}/part"))
    assert found[-1] == "srv/next"
    assert "srv/big" not in found
    script = "cat /srv/big >/dev/null; cat /srv/next"
    said = optimize(scratch, source, f"oci:{scratch}/whole", "--", "/bin/sh", "-c", script)
    assert "left behind" not in said
    (found,) = map(first, trees(f"{scratch}/whole"))
    assert found[-2:] == ["srv/big", "srv/next"]


def test_a_workload_that_fails_ends_everything(shelf: FaultyRegistry, scratch: str) -> None:
    source = shelf.add_image("optimize/fails", image("fails"))
    with pytest.raises(CommandFailed, match=r"ended with exit status 7 after .* s: oh no") as caught:
        optimize(scratch, source, f"oci:{scratch}/out", "--", "/bin/sh", "-c", "echo oh no; exit 7")
    assert caught.value.returncode == 23
    assert not os.path.exists(f"{scratch}/out")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--record-in", "absent.jsonl", "SRC", "DST"], 3, "there is no file absent.jsonl"),
        (["--period", "soon", "SRC", "DST"], 2, "no duration"),
        (["--env", "A", "SRC", "DST"], 2, "NAME=VALUE"),
        (["--entrypoint", "[1]", "SRC", "DST"], 2, "list of words"),
        (["--all-platforms", "SRC", "DST"], 2, "what runs is one image"),
        (["SRC", "DST", "--", "/bin/absent"], 1, "/bin/absent"),
    ],
)
def test_errors_are_one_line_with_a_code(
    shelf: FaultyRegistry, scratch: str, arguments: list[str], code: int, reason: str
) -> None:
    words = {"SRC": shelf.add_image("optimize/errors", image("errors")), "DST": f"oci:{scratch}/out"}
    with pytest.raises(CommandFailed, match=reason) as caught:
        optimize(scratch, *(words.get(word, word) for word in arguments))
    assert caught.value.returncode == code
    assert "Traceback" not in caught.value.output
    assert not os.path.exists(f"{scratch}/out")


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_interrupted_while_it_runs_it_leaves_nothing(
    shelf: FaultyRegistry, scratch: str, number: signal.Signals, code: int, again: bool
) -> None:
    source = shelf.add_image("optimize/interrupted", image("interrupted"))
    seconds = f"{86000 + number}"
    command = [*LAYERGATE, "optimize", "--period", "10m", source, f"oci:{scratch}/out"]
    process = subprocess.Popen(
        [*command, "--", "/bin/sh", "-c", f"echo started; sleep {seconds}"],
        env={**os.environ, "TMPDIR": f"{scratch}/tmp"},
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        while line := process.stdout.readline():
            if line == b"started\n":
                break
        else:
            pytest.fail("it ended before it ran")
        time.sleep(0.2)
        os.killpg(process.pid, number)
        while again and process.poll() is None:
            time.sleep(0.01)
            os.killpg(process.pid, number)
        output = process.stdout.read()
        assert process.wait(60) == code, output
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    nothing_is_left(scratch)
    assert not os.path.exists(f"{scratch}/out")
    left = subprocess.run(["pgrep", "-f", f"^sleep {seconds}"], capture_output=True, check=False)
    assert left.stdout == b""
