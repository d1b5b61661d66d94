"""`layergate cache` without serve: options, tables, JSON, exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fetcher.store import boot_id
from mounter.mountinfo import read_mounts
from mounter.uses import Uses
from snapshotter.cli import cli
from snapshotter.manual.state import ManualMounts, MountState, mount_namespace
from snapshotter.metadata import Kind, Metadata
from snapshotter.processes import Process
from tests import trees
from tests.snapshotter.cached import CachedNode

pytestmark = pytest.mark.root


@pytest.fixture
def node(tmp_path: Path) -> CachedNode:
    return CachedNode(tmp_path)


def run(node: CachedNode, *arguments: str) -> Result:
    """`layergate cache ARGUMENTS` on the node's root."""
    options = ["--root", node.root]
    if arguments[0] != "verify":
        options += ["--address", f"{node.path}/nobody.sock"]
    # standalone_mode=False, as `main` runs it: errors of ours come out as they are.
    return CliRunner().invoke(cli, ["cache", *arguments, *options], standalone_mode=False)


def digest(node: CachedNode, layer: str) -> str:
    return node.store.record(layer).digest


def test_ls(node: CachedNode) -> None:
    layer = node.small(1, image="registry.test/a/rather/long/name/of/an/image:with-a-tag")
    node.age(layer, 7300)
    result = run(node, "ls")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["LAYER", "SIZE", "STATE", "USED", "IMAGE"]
    assert digest(node, layer)[7:19] in lines[1]
    assert "complete" in lines[1]
    assert "2 h ago" in lines[1]
    assert all(len(line) <= 80 for line in lines)
    assert lines[-1].startswith("1 layer, ")


def test_ls_json(node: CachedNode) -> None:
    one, two = node.small(1, image="registry.test/one:1"), node.small(2, complete=False)
    Path(node.store.layers_directory, ".dead-x").mkdir()
    found = json.loads(run(node, "ls", "--json").stdout)
    assert found.keys() == {"root", "layers", "leftovers", "bytes", "free_bytes", "size_bytes"}
    layers = {layer["layer"]: layer for layer in found["layers"]}
    assert layers[one].keys() == {
        "layer",
        "digest",
        "state",
        "bytes",
        "images",
        "last_used",
        "used_by",
    }
    assert layers[one]["images"] == ["registry.test/one:1"]
    assert layers[one]["state"] == "complete"
    assert layers[two]["state"] == "incomplete"
    assert found["bytes"] == layers[one]["bytes"] + layers[two]["bytes"]
    assert [leftover["path"] for leftover in found["leftovers"]] == [
        os.path.join(node.store.layers_directory, ".dead-x")
    ]


def test_what_uses_a_layer_is_named(node: CachedNode, tmp_path: Path) -> None:
    layer, unused = node.small(1), node.small(2)
    with Metadata(os.path.join(node.root, "metadata.db")) as metadata, metadata.transaction():
        parent = metadata.insert(
            "sha256:c", kind=Kind.COMMITTED, parent=None, labels={}, now_ns=1, layer=layer
        )
        for number in range(4):
            name = f"k8s.io/{number}/a-rather-long-name-of-a-container-{number}"
            metadata.insert(name, kind=Kind.ACTIVE, parent=parent, labels={}, now_ns=1)
    said = run(node, "ls").stdout
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "by 5 snapshots" in said
    (used,) = [line for line in said.splitlines() if line.startswith(f"  {digest(node, layer)[7:19]}")]
    assert "snapshot k8s.io/0/" in used
    assert said.count(digest(node, unused)[7:19]) == 1
    assert "and 2 more" in " ".join(said.split())


def test_a_mount_whose_keeper_was_killed_is_mentioned(node: CachedNode) -> None:
    mounts = ManualMounts(node.root)
    mounts.create_directories()
    (some, *_) = read_mounts()
    mounts.write(
        MountState(
            id="one",
            mountpoint=some.target,
            source="oci:/layout",
            alone=False,
            rw=None,
            made_rw=False,
            keeper=Process(2**22 - 1, 1),
            namespace=mount_namespace(),
            boot=boot_id(),
            since=0.0,
            mounts=[some.id],
        )
    )
    said = run(node, "clean", "--dry-run")
    assert f"layergate umount {some.target} ends it" in " ".join(said.stdout.split())
    assert json.loads(run(node, "clean", "--dry-run", "--json").stdout)["orphaned"] == [some.target]


def test_ls_sorts(node: CachedNode) -> None:
    small, large = node.small(1, complete=False), node.small(2)
    node.age(small, 10)
    node.age(large, 1000)
    by_use = json.loads(run(node, "ls", "--json").stdout)["layers"]
    by_size = json.loads(run(node, "ls", "--json", "--sort", "size").stdout)["layers"]
    assert [layer["layer"] for layer in by_use] == [small, large]
    assert [layer["layer"] for layer in by_size] == [large, small]


def test_clean_removes_what_is_unused(node: CachedNode) -> None:
    used, gone = node.small(1), node.small(2, image="registry.test/gone:1")
    uses = Uses(node.root)
    uses.add(used)
    result = run(node, "clean", "--image", "registry.test/gone:1")
    assert result.return_value == 0
    assert digest(node, used)[7:19] not in result.stdout
    assert "gone:1" in result.stdout
    assert "1 layer of" in result.stdout
    assert node.store.layers() == [used]
    uses.close()
    assert gone not in node.store.layers()


def test_clean_says_who_uses_what_was_named(node: CachedNode) -> None:
    layer = node.small(1)
    uses = Uses(node.root)
    uses.add(layer)
    result = run(node, "clean", "--layer", digest(node, layer)[7:15])
    uses.close()
    assert result.return_value == 20
    assert f"{digest(node, layer)[7:19]} stays, in use by process" in result.stdout
    assert node.store.layers() == [layer]


def test_clean_of_what_is_not_here(node: CachedNode) -> None:
    layer = node.small(1)
    result = run(node, "clean", "--layer", "0123456789ab", "--layer", digest(node, layer))
    assert result.return_value == 1
    assert "no layer here is of 0123456789ab" in result.stdout
    assert node.store.layers() == []


def test_clean_to_a_size_that_cannot_be_reached(node: CachedNode) -> None:
    layer = node.small(1)
    uses = Uses(node.root)
    uses.add(layer)
    assert run(node, "clean", "--to-size", "1KB").return_value == 20
    uses.close()
    assert run(node, "clean", "--to-size", "1KB").return_value == 0
    assert node.store.layers() == []


def test_clean_older_than(node: CachedNode) -> None:
    young, old = node.small(1), node.small(2)
    node.age(old, 8 * 86400)
    assert run(node, "clean", "--older-than", "7d").return_value == 0
    assert node.store.layers() == [young]


def test_clean_json(node: CachedNode) -> None:
    layer = node.small(1)
    found = json.loads(run(node, "clean", "--all", "--json").stdout)
    assert found.keys() == {
        "dry_run",
        "removed",
        "kept",
        "unknown",
        "leftovers",
        "problems",
        "freed_bytes",
        "bytes_left",
        "done",
        "orphaned",
    }
    assert found["removed"][0]["layer"] == layer
    assert found["done"] is True
    assert found["bytes_left"] == 0


def test_a_dry_run_prints_the_same_plan_and_changes_nothing(node: CachedNode) -> None:
    node.small(1, image="registry.test/one:1")
    Path(node.store.layers_directory, ".new-x").mkdir()
    before = trees.scan(node.root)
    dry = run(node, "clean", "--all", "--dry-run")
    assert trees.scan(node.root) == before
    assert dry.return_value == 0
    wet = run(node, "clean", "--all")

    def planned(text: str) -> list[str]:
        return [
            line.replace("would be removed", "removed").strip()
            for line in text.splitlines()
            if "one:1" in line or "left by a crash" in line
        ]

    assert planned(dry.stdout) == planned(wet.stdout)
    assert len(planned(dry.stdout)) == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--all", "--unused"],
        ["--all", "--image", "x"],
        ["--image", "x", "--layer", "abcdef"],
        ["--all", "--older-than", "1h"],
        ["--layer", "abcdef", "--to-size", "1GB"],
        ["--older-than", "soon"],
        ["--to-size", "small"],
        ["--image", "Not A Reference"],
    ],
)
def test_options_that_cannot_be_meant(node: CachedNode, options: list[str]) -> None:
    from snapshotter.cli.exit_codes import exit_code

    layer = node.small(1)
    result = run(node, "clean", *options)
    assert result.exception is not None
    assert getattr(result.exception, "exit_code", exit_code(result.exception)) == 2
    assert node.store.layers() == [layer]


@pytest.mark.parametrize("arguments", [["ls"], ["clean"], ["verify"]])
def test_a_root_that_is_not_there_is_not_made(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["cache", *arguments, "--root", str(tmp_path / "absent")])
    assert result.exit_code == 2
    assert "there is no directory" in result.stderr
    assert not (tmp_path / "absent").exists()


def test_a_serve_that_does_not_answer(node: CachedNode) -> None:
    from snapshotter.cli.exit_codes import exit_code

    with Metadata(os.path.join(node.root, "metadata.db")):
        result = run(node, "ls")
    assert result.exception is not None
    assert exit_code(result.exception) == 9
    assert "give the --address" in str(result.exception)


def test_verify_and_repair(node: CachedNode) -> None:
    intact, damaged = node.small(1), node.small(2)
    Path(node.store.fs(damaged), "usr/file2").write_bytes(b"damaged")
    result = run(node, "verify")
    assert result.return_value == 6
    assert f"{digest(node, intact)[7:19]}  intact" in result.stdout
    assert f"{digest(node, damaged)[7:19]}  1 of 9 entries wrong" in result.stdout
    assert "content: usr/file2" in result.stdout
    assert run(node, "verify", digest(node, intact)).return_value == 0
    mended = run(node, "verify", "--repair", digest(node, damaged)[7:19])
    assert mended.return_value == 0
    assert "repaired: 1 of 9 entries wrong" in mended.stdout
    assert run(node, "verify").return_value == 0


def test_verify_json(node: CachedNode) -> None:
    layer = node.small(1)
    os.unlink(os.path.join(node.store.fs(layer), "usr/file2"))
    found = json.loads(run(node, "verify", "--json").stdout)
    assert found["intact"] is False
    [verdict] = found["layers"]
    assert verdict["faults"] == [{"path": "usr/file2", "kind": "missing"}]
    assert verdict.keys() == {"layer", "digest", "entries", "bytes", "faults", "error", "repaired"}


def test_verify_of_what_is_not_here(node: CachedNode) -> None:
    result = run(node, "verify", "0123456789ab")
    assert getattr(result.exception, "exit_code", None) == 1


def test_help_names_each_command() -> None:
    result = CliRunner().invoke(cli, ["cache", "--help"])
    assert result.exit_code == 0
    for name in ("ls", "clean", "verify"):
        assert f"\n  {name} " in result.output
