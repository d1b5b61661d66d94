"""Imports go one way: snapshotter -> mounter -> fetcher; and a pure module stays pure."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


def _modules(package: str) -> Iterator[str]:
    for directory, _, names in os.walk(os.path.join(_ROOT, package)):
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(directory, name), _ROOT)


def _imported(module: str) -> set[str]:
    """The top-level packages that a module imports anywhere in it."""
    with open(os.path.join(_ROOT, module), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", _MAY_IMPORT)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    modules = list(_modules(package))
    assert modules
    ours = {module: _imported(module) & _OURS for module in modules}
    assert {module: found for module, found in ours.items() if found - _MAY_IMPORT[package]} == {}


@pytest.mark.parametrize("module", sorted(_PURE))
def test_pure_modules_do_no_io(module: str) -> None:
    assert _imported(module) & _IO == set()
