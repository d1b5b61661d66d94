"""The two seams that an image passes through: ImageSource and ImageDestination.

Everything inside an image is addressed by descriptor (OCI image-spec, "descriptor"), so neither side knows
what the other is: a registry, an OCI layout, an archive, containerd's content store. Both are asynchronous
context managers whose exit frees what they hold; one of either serves one image. Used from one event loop.
"""

from __future__ import annotations

from typing import Protocol, Self

from fetcher.blob import Blob
from fetcher.manifest import Descriptor, Document


class ImageSource(Protocol):
    """Reads one image, or an index of several."""

    @property
    def name(self) -> str:
        """What people call it: the reference or path, as they gave it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def root(self) -> Document:
        """What the source names, an index or a manifest, verified. Raises FetchError."""

    async def document(self, descriptor: Descriptor) -> Document:
        """A manifest, an index or a config by descriptor, verified; at most 16 MiB. Raises FetchError."""

    def blob(self, descriptor: Descriptor) -> Blob:
        """A layer; its bytes are not verified here."""


class ImageDestination(Protocol):
    """Writes one image; nothing can be seen under its name before `finish`.

    Leaving without `finish` leaves no name behind, and no file that a finished image does not need.
    """

    @property
    def name(self) -> str:
        """What people call it: the reference or path, as they gave it."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there already, so that it need not be put."""

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        """Takes a blob from a file whose digest and size are `descriptor`'s. Raises FetchError."""

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """Takes a config, or a manifest that only an index names. Raises FetchError."""

    async def finish(self, root: Document) -> None:
        """Gives the image its name: `root` is its index or manifest. Raises FetchError."""
