"""An image as a pull needs it: small documents in hand, layers to be opened where they are wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from fetcher.errors import FormatError, VerificationError
from snapshotter.containerd.types import Descriptor

LayerSource = Callable[[Descriptor, int], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Opens the blob of a layer from an offset to its end."""


class UnusableImage(FormatError):
    """The image's documents contradict each other."""


class WrongLayer(VerificationError):
    """A layer's bytes, or what they unpack to, are not what the image promised."""


@dataclass(frozen=True, slots=True)
class Document:
    """An index, manifest or config, its digest verified."""

    descriptor: Descriptor
    content: bytes


@dataclass(frozen=True, slots=True)
class PullableImage:
    """One platform of an image, resolved.

    `name` is the canonical reference, `layers` and `diff_ids` go from the bottom up, and
    `siblings` are the digests of all manifests in `index`, this one among them.
    """

    name: str
    host: str
    repository: str
    digest_name: str
    index: Document | None
    siblings: tuple[str, ...]
    manifest: Document
    config: Document
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    open_layer: LayerSource

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.diff_ids):
            raise UnusableImage(
                f"{self.name}: its manifest lists {len(self.layers)} layers and its config "
                f"{len(self.diff_ids)}: the image is damaged, push it anew"
            )

    @property
    def target(self) -> Descriptor:
        """What the image record points to."""
        return (self.index or self.manifest).descriptor
