"""The version of all of layergate; `pyproject.toml` takes it from here."""

from __future__ import annotations

TYPE_CHECKING = False  # `snapshotter.entry` waits for this module, and need not for typing
if TYPE_CHECKING:
    from typing import Final

VERSION: Final = "0.1.0"
