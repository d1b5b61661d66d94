"""Classes are worked out where modules are loaded, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import msgspec
import pytest

from fetcher.typed import Converter
from tests.sources import modules, parsed

_PACKAGES = ("fetcher", "mounter", "snapshotter")


class _Point(msgspec.Struct):
    x: int
    y: int = 0


def test_a_value_is_made_of_plain_ones_or_refused() -> None:
    points = Converter(_Point)
    assert points.convert({"x": 1}) == _Point(1, 0)
    with pytest.raises(msgspec.ValidationError, match="x"):
        points.convert({"x": "one"})


@pytest.mark.parametrize("package", _PACKAGES)
def test_no_function_has_msgspec_work_out_a_class_while_other_threads_run(package: str) -> None:
    found = [
        f"{path}:{line}"
        for path in modules(package)
        for line in _late_calls(parsed(path))
        if path != "fetcher/typed.py"
    ]
    assert found == []


def test_what_would_do_so_is_recognized() -> None:
    source = "msgspec.json.decode(b'1', type=int)\nmsgspec.convert(1, int)\nmsgspec.json.decode(b'1')\n"
    assert list(_late_calls(ast.parse(source))) == [1, 2]


def _late_calls(tree: ast.AST) -> Iterator[int]:
    """Lines that call msgspec's `decode` with a type, or its `convert`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not ast.unparse(node.func).startswith("msgspec."):
            continue
        typed = any(keyword.arg == "type" for keyword in node.keywords) or len(node.args) > 1
        if node.func.attr == "convert" or (node.func.attr == "decode" and typed):
            yield node.lineno
