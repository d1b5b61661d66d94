"""What a pull tells whoever watches it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from snapshotter.containerd.types import Descriptor


class LayerState(enum.Enum):
    """Where a layer is; the values are what people read."""

    WAITING = "waiting"
    OPENING = "opening"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    UNPACKING = "unpacking"
    LAZY = "lazy"
    UNPACKED = "unpacked"
    EXISTS = "exists"


class PullProgress(Protocol):
    """Receives a pull's progress; layers go by their number, 0 at the bottom. No method may block."""

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """The image's layers are known; called once, before the others."""

    def state(self, number: int, state: LayerState) -> None:
        """A layer came into another state."""

    def received(self, number: int, done: int) -> None:
        """Bytes of a layer's blob that are here, those from before included."""
