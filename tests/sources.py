"""The modules of this checkout, for tests of what is in them."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from typing import Final

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def modules(package: str) -> Iterator[str]:
    """The paths of a package's modules, from the checkout's top."""
    for directory, _, names in os.walk(os.path.join(_ROOT, package)):
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(os.path.join(directory, name), _ROOT)


def parsed(module: str) -> ast.Module:
    """A module's syntax tree."""
    with open(os.path.join(_ROOT, module), "rb") as file:
        return ast.parse(file.read())
