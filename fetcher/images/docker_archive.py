"""One image in a tar that `docker save` or `podman save` wrote. Blocking.

    manifest.json            [{"Config": FILE, "RepoTags": [NAME, ...] or null, "Layers": [FILE, ...]}, ...]
    <config>.json            the config, with the DiffIDs
    <id>/layer.tar           layers: as they are, or gzip or zstd; often links to one another

Docker 1.10 and later, skopeo, podman, buildah, kaniko, jib and bazel write it, each with file names of its
own, so only manifest.json says which file is what. It has no manifest: one of docker's kind is made of it,
always the same for the same archive.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from fetcher.blob import Blob
from fetcher.errors import FormatError, SourceNotFound
from fetcher.images.recognition import GZIP_MAGIC, ZSTD_MAGIC, is_tar
from fetcher.images.tar_index import TarIndex
from fetcher.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    Descriptor,
    Document,
    parse_diff_ids,
)
from fetcher.oci_layout import DOCUMENT_LIMIT, is_named, shown_names

MANIFEST_NAME: Final = "manifest.json"
_HEAD: Final = 512


class _Saved(msgspec.Struct, frozen=True, rename="pascal"):
    """One image in manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


_INDEXES: Final = msgspec.json.Decoder(list[_Saved])


class DockerArchive:
    """The image `name` of an archive, or the only one: `@N` is the one at N, from 0 on.

    Raises SourceNotFound, FormatError, StoreError; so does every method.
    """

    def __init__(self, index: TarIndex, name: str | None) -> None:
        self._index = index
        saved = self._choose(name)
        self._config = Document(*_addressed(index.read(saved.config, DOCUMENT_LIMIT), DOCKER_CONFIG))
        self._layers: dict[str, str] = {}
        self._manifest = self._make_manifest(saved)

    def root(self) -> Document:
        """The manifest that was made for the image."""
        return self._manifest

    def document(self, descriptor: Descriptor) -> Document:
        """The manifest or the config."""
        for document in (self._manifest, self._config):
            if document.digest == descriptor.digest:
                return document
        raise SourceNotFound(f"{self._index.path} has no image document {descriptor.digest}")

    def blob(self, descriptor: Descriptor) -> Blob:
        """A layer."""
        name = self._layers.get(descriptor.digest)
        if name is None:
            raise SourceNotFound(f"{self._index.path} has no layer {descriptor.digest}")
        return self._index.blob(name)

    def _choose(self, name: str | None) -> _Saved:
        path = self._index.path
        try:
            images = _INDEXES.decode(self._index.read(MANIFEST_NAME, DOCUMENT_LIMIT))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FormatError(f"{path}: its {MANIFEST_NAME} is not docker's: {error}") from error
        if not images:
            raise SourceNotFound(f"{path} has no image")
        numbered = {f"@{number}": image for number, image in enumerate(images)}
        if name is None:
            if len(images) > 1:
                raise SourceNotFound(f"{path} has several images: name one of {_names(images)}")
            return images[0]
        if name in numbered:
            return numbered[name]
        named = [image for image in images if is_named(name, image.repo_tags or ())]
        if not named:
            raise SourceNotFound(f"{path} has no image {name!r}; it has {_names(images)}")
        return named[-1]

    def _make_manifest(self, saved: _Saved) -> Document:
        path = self._index.path
        try:
            diff_ids = parse_diff_ids(self._config.data)
        except FormatError as error:
            raise FormatError(f"{path}: {saved.config!r} is {error}") from error
        if len(diff_ids) != len(saved.layers):
            raise FormatError(
                f"{path}: its {MANIFEST_NAME} lists {len(saved.layers)} layers and its config {len(diff_ids)}"
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": DOCKER_CONFIG,
                "size": len(self._config.data),
                "digest": self._config.digest,
            },
            "layers": [
                self._layer(name, diff_id) for name, diff_id in zip(saved.layers, diff_ids, strict=True)
            ],
        }
        return Document(*_addressed(msgspec.json.encode(manifest), DOCKER_MANIFEST))

    def _layer(self, name: str, diff_id: str) -> dict[str, object]:
        """A layer's descriptor; a compressed one is read once for its digest."""
        member = self._index.member(name)
        head = self._index.head(name, _HEAD)
        suffix, digest = "", diff_id
        if head.startswith(GZIP_MAGIC):
            suffix = ".gzip"
        elif head.startswith(ZSTD_MAGIC):
            suffix = ".zstd"
        elif not is_tar(head):
            raise FormatError(f"{self._index.path}: the layer {name!r} is no tar")
        if suffix:
            digest = self._index.digest(name)
        self._layers[digest] = name
        return {"mediaType": DOCKER_LAYER + suffix, "size": member.size, "digest": digest}


def _addressed(data: bytes, media_type: str) -> tuple[str, str, bytes]:
    return "sha256:" + hashlib.sha256(data).hexdigest(), media_type, data


def _names(images: list[_Saved]) -> str:
    return shown_names(
        [name for number, image in enumerate(images) for name in image.repo_tags or [f"@{number}"]]
    )
