"""An image in an OCI layout, as a source."""

from __future__ import annotations

from typing import Self

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.images.naming import LayoutPlace
from fetcher.manifest import Descriptor, Document
from fetcher.oci_layout import LayoutDirectory, OciLayout


class LayoutImageSource:
    """Reads the image `tag` of a layout, or the only image that is there. See ImageSource."""

    def __init__(self, directory: str, tag: str | None) -> None:
        self._place = LayoutPlace(directory, tag)
        self._layout = OciLayout(LayoutDirectory(directory))

    @property
    def name(self) -> str:
        """See ImageSource."""
        return str(self._place)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    async def root(self) -> Document:
        """See ImageSource."""
        return await to_thread.run_sync(self._layout.root, self._place.tag)

    async def document(self, descriptor: Descriptor) -> Document:
        """See ImageSource."""
        return await to_thread.run_sync(self._layout.document, descriptor)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See ImageSource. Raises SourceNotFound for one that the layout lacks."""
        return self._layout.blob(descriptor)
