"""An image that is being converted, as whoever decides on its layers sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from fetcher.blob import Blob
from fetcher.convert import LayerOptions
from fetcher.manifest import Document, LayerDescriptor, Manifest


@dataclass(frozen=True, slots=True, eq=False)
class SourceImage:
    """One image of the source; its layers from the bottom up.

    `fetch` brings a layer, by its number from 0, to a file, verified, unless it is here already. The file
    stays until the layer has been converted.
    """

    manifest: Document
    parsed: Manifest
    config: Document
    blob: Callable[[int], Blob]
    fetch: Callable[[int], Awaitable[str]]

    @property
    def layers(self) -> tuple[LayerDescriptor, ...]:
        """The layers from the bottom up."""
        return self.parsed.layers


OptionsFor: TypeAlias = Callable[[SourceImage, int], Awaitable[LayerOptions | None]]
"""Decides how a layer of an image is converted; None leaves it as it is.

Asked for each layer when its turn comes, for several at a time. Whoever has to know what all layers hold may
`fetch` them all. Equal answers for layers that images share give one conversion.
"""
