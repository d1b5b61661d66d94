"""An image in a tar file, as a source: an OCI archive, or what `docker save` and `podman save` write."""

from __future__ import annotations

from typing import Self

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.errors import FormatError
from fetcher.images.docker_archive import MANIFEST_NAME, DockerArchive
from fetcher.images.naming import ArchivePlace
from fetcher.images.recognition import check_uncompressed
from fetcher.images.tar_index import TarIndex
from fetcher.manifest import Descriptor, Document
from fetcher.oci_layout import OciLayout

_OLDEST = "repositories"
"""What docker before 1.10 wrote alone."""


class ArchiveImageSource:
    """Reads the image `reference` of an archive, or the only image there is. See ImageSource.

    Of an archive that is both, as docker 25 and `ctr images export` write it, the OCI half is read: that
    has manifests.
    """

    def __init__(self, path: str, reference: str | None) -> None:
        self._place = ArchivePlace(path, reference)
        self._entered: DockerArchive | OciLayout | None = None

    @property
    def name(self) -> str:
        """See ImageSource."""
        return str(self._place)

    async def __aenter__(self) -> Self:
        """Raises SourceNotFound, FormatError, StoreError."""
        self._entered = await to_thread.run_sync(self._open)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._entered = None

    async def root(self) -> Document:
        """See ImageSource."""
        archive = self._archive
        if isinstance(archive, OciLayout):
            return await to_thread.run_sync(archive.root, self._place.reference)
        return archive.root()

    async def document(self, descriptor: Descriptor) -> Document:
        """See ImageSource."""
        return await to_thread.run_sync(self._archive.document, descriptor)

    def blob(self, descriptor: Descriptor) -> Blob:
        """See ImageSource. Raises SourceNotFound, FormatError."""
        return self._archive.blob(descriptor)

    @property
    def _archive(self) -> DockerArchive | OciLayout:
        assert self._entered is not None, "a source is entered before it is read"
        return self._entered

    def _open(self) -> DockerArchive | OciLayout:
        path = self._place.path
        check_uncompressed(path)
        index = TarIndex.of(path)
        if "index.json" in index:
            return OciLayout(index)
        if MANIFEST_NAME in index:
            return DockerArchive(index, self._place.reference)
        if _OLDEST in index:
            raise FormatError(
                f"{path} was written by docker before 1.10, without {MANIFEST_NAME}: "
                "load it into a newer one, and save it again"
            )
        raise FormatError(f"{path} is no archive of images: it has neither index.json nor {MANIFEST_NAME}")
