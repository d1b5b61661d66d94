"""Writing an image to one tar file that everybody takes.

The tar holds an OCI layout and, beside it, the manifest.json of docker's own format, as `docker save` has had
it since version 25: `docker load`, podman, skopeo (oci-archive: and docker-archive:) and `ctr images import`
all find what they look for.

The same image gives the same bytes, in whatever order its blobs were put: they are kept in a directory beside
the file until the image is finished, and each is removed as soon as it is in the tar.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from typing import Final, Self

from anyio import to_thread

from fetcher.images.layout_index import (
    LAYOUT_FILE,
    LAYOUT_VERSION,
    blob_name,
    docker_manifest,
    encode,
    named_entry,
)
from fetcher.images.writing import appearing, place_bytes, place_file, require_replaceable, writing
from fetcher.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Document,
    Manifest,
    Platform,
    choose_manifest,
    parse_index,
    parse_manifest,
)
from fetcher.reference import Reference, parse_digest

_MAGIC: Final = slice(257, 262)
_DIRECTORIES: Final = ("blobs", "blobs/sha256")


class ArchiveDestination:
    """The tar file `path`; one that is there is replaced, if it is a tar too.

    `references` are the names that the image is given when it is loaded; podman and docker take all, others
    the first. Of an index, docker's manifest.json names the image for `platform`, or else the first.
    """

    def __init__(
        self, path: str, references: Sequence[Reference] = (), *, platform: Platform | None = None
    ) -> None:
        self._path = path
        self._names = [f"{one.name}:{one.tag}" for one in references if one.tag is not None]
        self._platform = platform or Platform.host()
        self._pieces = ""

    @property
    def name(self) -> str:
        """See ImageDestination."""
        return f"docker-archive:{self._path}"

    async def __aenter__(self) -> Self:
        """Raises DestinationUnusable for a file that is no tar, StoreError."""
        await to_thread.run_sync(self._begin)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await to_thread.run_sync(lambda: shutil.rmtree(self._pieces, ignore_errors=True))

    async def has(self, descriptor: Descriptor) -> bool:
        """See ImageDestination."""
        return await to_thread.run_sync(os.path.exists, self._piece(descriptor.digest))

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        """See ImageDestination; the file is copied. Raises VerificationError, StoreError."""
        await to_thread.run_sync(place_file, path, self._piece(descriptor.digest), descriptor)

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """See ImageDestination."""
        await to_thread.run_sync(place_bytes, data, self._piece(descriptor.digest))

    async def finish(self, root: Document) -> None:
        """See ImageDestination."""
        await to_thread.run_sync(self._finish, root)

    def _begin(self) -> None:
        require_replaceable(self._path, "tar archive", is_tar)
        directory = os.path.dirname(self._path) or "."
        with writing(self._path):
            self._pieces = tempfile.mkdtemp(prefix=f".{os.path.basename(self._path)[:100]}.", dir=directory)

    def _finish(self, root: Document) -> None:
        place_bytes(root.data, self._piece(root.digest))
        name = self._names[0] if self._names else None
        tag = None if name is None else name.rpartition(":")[2]
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [named_entry(root, tag=tag, image_name=name)],
        }
        documents = {LAYOUT_FILE: LAYOUT_VERSION, "index.json": encode(index)}
        image = self._image(root)
        if image is not None:
            documents["manifest.json"] = docker_manifest(image, self._names)
        with (
            writing(self._path),
            appearing(self._path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for directory in _DIRECTORIES:
                tar.addfile(_member(directory, 0, mode=0o755, kind=tarfile.DIRTYPE))
            for document, data in documents.items():
                tar.addfile(_member(document, len(data)), io.BytesIO(data))
            for digest in self._ordered(root):
                self._append(tar, digest)

    def _append(self, tar: tarfile.TarFile, digest: str) -> None:
        piece = self._piece(digest)
        with open(piece, "rb") as file:
            tar.addfile(_member(blob_name(digest), os.stat(piece).st_size), file)
        os.unlink(piece)

    def _ordered(self, root: Document) -> list[str]:
        """What was put: documents from the root down, each with its layers from the bottom up; the rest."""
        found = dict.fromkeys(self._reachable(root))
        rest = sorted(f"sha256:{name}" for name in os.listdir(self._pieces) if not name.startswith("."))
        return [digest for digest in dict.fromkeys((*found, *rest)) if os.path.exists(self._piece(digest))]

    def _reachable(self, document: Document) -> Iterator[str]:
        yield document.digest
        if document.media_type in INDEX_TYPES:
            for entry in parse_index(document.data):
                nested = self._document(entry.descriptor)
                if nested is not None:
                    yield from self._reachable(nested)
        elif document.media_type in MANIFEST_TYPES:
            manifest = parse_manifest(document.data)
            yield manifest.config.digest
            yield from (layer.digest for layer in manifest.layers)

    def _image(self, root: Document) -> Manifest | None:
        """The image that docker's manifest.json is to name; None if there is none."""
        if root.media_type in MANIFEST_TYPES:
            return parse_manifest(root.data)
        entries = parse_index(root.data)
        chosen = choose_manifest(entries, self._platform) or (entries[0].descriptor if entries else None)
        document = None if chosen is None else self._document(chosen)
        return None if document is None else self._image(document)

    def _document(self, descriptor: Descriptor) -> Document | None:
        try:
            with open(self._piece(descriptor.digest), "rb") as file:
                return Document(descriptor.digest, descriptor.media_type, file.read())
        except FileNotFoundError:
            return None

    def _piece(self, digest: str) -> str:
        return os.path.join(self._pieces, parse_digest(digest).partition(":")[2])


def is_tar(head: bytes) -> bool:
    """Whether the first block of a file is that of a tar."""
    return head[_MAGIC] == b"ustar"


def _member(name: str, size: int, *, mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type = size, mode, kind
    return info
