"""What a conversion tells whoever watches it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from fetcher.manifest import Descriptor


class LayerState(enum.Enum):
    """Where a layer is; the values are what people read."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    CONVERTING = "converting"
    WRITING = "writing"
    CONVERTED = "converted"
    KEPT = "kept"


class ConvertProgress(Protocol):
    """Receives a conversion's progress; layers go by their number. No method may block; threads call too."""

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """The different layers of the source, in its manifests' order; called once, before the others."""

    def state(self, number: int, state: LayerState, blob: Descriptor) -> None:
        """A layer came into another state, in which all bytes of `blob` are to be done."""

    def done(self, number: int, count: int) -> None:
        """How many bytes of the layer's state are done, unless it is WRITING."""

    def sent(self, digest: str, count: int) -> None:
        """How many bytes of a blob have been sent to the destination; a failure sets that back."""


class NoProgress:
    """For whoever does not want to know."""

    def layers(self, layers: Sequence[Descriptor]) -> None:
        """See ConvertProgress."""

    def state(self, number: int, state: LayerState, blob: Descriptor) -> None:
        """See ConvertProgress."""

    def done(self, number: int, count: int) -> None:
        """See ConvertProgress."""

    def sent(self, digest: str, count: int) -> None:
        """See ConvertProgress."""
