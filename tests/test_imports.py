"""Imports go one way: snapshotter -> mounter -> fetcher; and a pure module stays pure."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.sources import modules, parsed

_MAY_IMPORT = {
    "fetcher": {"fetcher"},
    "mounter": {"fetcher", "mounter"},
    "snapshotter": {"fetcher", "mounter", "snapshotter"},
}
_OURS = {*_MAY_IMPORT, "tests", "scripts"}
_PURE = {
    "fetcher/footer.py",
    "fetcher/toc.py",
    "fetcher/tree.py",
    "fetcher/nodes.py",
    "fetcher/pieces.py",
    "fetcher/inflate.py",
    "fetcher/manifest.py",
    "fetcher/reference.py",
    "fetcher/access_order.py",
    "fetcher/convert/contents.py",
    "fetcher/convert/endings.py",
    "fetcher/convert/entry.py",
    "fetcher/convert/header.py",
    "fetcher/convert/members.py",
    "fetcher/convert/options.py",
    "fetcher/convert/order.py",
    "fetcher/convert/pax.py",
    "fetcher/convert/rewriting.py",
    "fetcher/convert/sparse.py",
    "fetcher/listing.py",
    "fetcher/record.py",
    "fetcher/images/decompressing.py",
    "fetcher/images/layout_index.py",
    "mounter/overlay.py",
    "snapshotter/cache/plan.py",
    "snapshotter/cache/quantities.py",
    "snapshotter/cache/values.py",
    "snapshotter/inspection/comparing.py",
    "snapshotter/inspection/merging.py",
    "snapshotter/inspection/summary.py",
    "snapshotter/mounts.py",
    "snapshotter/optimize/spec.py",
    "snapshotter/filters.py",
    "snapshotter/remote.py",
}
_IO = {"httpx", "anyio", "trio", "asyncio", "socket", "subprocess", "sqlite3", "grpc", "pyfuse3", "ctypes"}


def _imported(module: str) -> set[str]:
    """The top-level packages that a module imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", _MAY_IMPORT)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    paths = list(modules(package))
    assert paths
    ours = {path: _imported(path) & _OURS for path in paths}
    assert {module: found for module, found in ours.items() if found - _MAY_IMPORT[package]} == {}


@pytest.mark.parametrize("module", sorted(_PURE))
def test_pure_modules_do_no_io(module: str) -> None:
    assert _imported(module) & _IO == set()


@pytest.mark.parametrize("process", ["snapshotter.serve", "snapshotter.worker", "mounter.process"])
def test_processes_that_stay_load_no_libraries_of_the_command(process: str) -> None:
    code = f"import sys, {process}, httpx; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert "httpx" in loaded
    assert not {"rich", "pygments", "click"} & {*loaded}
