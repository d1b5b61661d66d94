"""The xattrs by which META leads overlayfs elsewhere, or nowhere, for what it has not itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fetcher.nodes import Node
from fetcher.tree import STEERING

METACOPY: Final = "trusted.overlay.metacopy"
"""Empty: the file's data are elsewhere."""
REDIRECT: Final = "trusted.overlay.redirect"
"""Where: a path in the data-only layers."""
OPAQUE: Final = "trusted.overlay.opaque"
"""`y`: what lies below a directory does not show."""


def data_directory(layer: str) -> bytes:
    """What comes before a file's path, or its directory's, in its redirect."""
    return f"/{layer}/fs/".encode()


def own_xattrs(node: Node) -> Iterator[tuple[str, bytes]]:
    """The layer's own xattrs of a node, without any that would steer overlayfs."""
    return ((name, value) for name, value in node.xattrs.items() if not name.startswith(STEERING))
