"""Conversions for tests on real parts: images of hand-made tars, and what others make of the result."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from fetcher.convert import Compressors, LayerFormat, LayerOptions
from fetcher.images.naming import parse_destination, parse_place
from fetcher.manifest import Manifest, parse_diff_ids, parse_manifest
from fetcher.settings import RegistrySettings
from snapshotter.containerd.labels import chain_ids
from snapshotter.convert.choice import LayerChoice
from snapshotter.convert.progress import NoProgress
from snapshotter.convert.run import Conversion, run_conversion
from snapshotter.image_places import Containerd as ContainerdAt
from tests import oci, trees
from tests.estargz import Layer
from tests.integration.harness import Containerd, Registry, call
from tests.integration.lazy import root_file_system
from tests.integration.manual import write_layout
from tests.integration.node import Node

FAST: Final = LayerOptions(format=LayerFormat.ESTARGZ, level=1, chunk_size=1 << 16)


@dataclass(slots=True)
class Converter:
    """Runs conversions in this process, with the compressing processes of a whole module."""

    compressors: Compressors
    containerd: ContainerdAt

    def __call__(
        self,
        source: str,
        destination: str,
        options: LayerOptions = FAST,
        *,
        rebuild: bool = True,
        all_platforms: bool = False,
    ) -> None:
        conversion = Conversion(
            source=parse_place(source),
            destination=parse_destination(destination),
            options_for=LayerChoice(options, rebuild=rebuild),
            options=options,
            all_platforms=all_platforms,
            settings=RegistrySettings(),
            containerd=self.containerd,
        )
        asyncio.run(run_conversion(conversion, compressors=self.compressors, progress=NoProgress()))


@dataclass(frozen=True, slots=True)
class Layout:
    """The only image of an OCI layout."""

    directory: str
    manifest: Manifest
    diff_ids: tuple[str, ...]

    @classmethod
    def read(cls, directory: str) -> Self:
        with open(f"{directory}/index.json", "rb") as file:
            (entry,) = msgspec.json.decode(file.read(), type=_Index).manifests
        manifest = parse_manifest(_blob(directory, entry.digest))
        return cls(directory, manifest, parse_diff_ids(_blob(directory, manifest.config.digest)))

    @property
    def chain_id(self) -> str:
        """The name of its uppermost snapshot."""
        return chain_ids(self.diff_ids)[-1]

    def layer(self, number: int) -> bytes:
        """A layer's blob."""
        return _blob(self.directory, self.manifest.layers[number].digest)


class _Entry(msgspec.Struct):
    digest: str


class _Index(msgspec.Struct):
    manifests: list[_Entry]


def _blob(directory: str, digest: str) -> bytes:
    with open(os.path.join(directory, "blobs", *digest.split(":")), "rb") as file:
        return file.read()


def layout_of(directory: str, layers: list[Layer]) -> str:
    """An OCI layout of layers; its SRC."""
    return write_layout(directory, oci.image(layers))


@dataclass(slots=True)
class Looker:
    """Looks at an image through a node's snapshotters."""

    node: Node
    registry: Registry
    _number: int = 0

    def ordinarily(self, layout: str, *, chain_id: str | None = None) -> dict[str, trees.Entry]:
        """The tree that containerd's overlayfs makes of the image of a layout."""
        self.node.containerd.pull(self._pushed(layout))
        return self._tree(chain_id or Layout.read(layout).chain_id, "overlayfs")

    def lazily(self, layout: str, *, lazy: int | None = None) -> dict[str, trees.Entry]:
        """The tree that layergate shows while it fetches; `lazy` layers (all of them) have to be lazy."""
        image = Layout.read(layout)
        count = len(image.manifest.layers) if lazy is None else lazy
        said = self.node.pull(self._pushed(layout))
        assert f"{count} lazy" in said or f"{count} exists" in said, said
        return self._tree(image.chain_id, self.node.name)

    def _pushed(self, layout: str) -> str:
        self._number += 1
        return self.registry.push(layout, f"looking/at{self._number}")

    def _tree(self, chain_id: str, snapshotter: str) -> dict[str, trees.Entry]:
        self._number += 1
        target = f"{self.node.directory}/seen{self._number}"
        containerd = self.node.containerd
        with root_file_system(containerd, chain_id, target, snapshotter=snapshotter) as root:
            return trees.scan(root)


@contextmanager
def ctr_remote_converted(containerd: Containerd, layout: str, directory: str) -> Iterator[str]:
    """The layout of what `ctr-remote images convert --estargz` makes of the image of a layout."""
    archive = f"{directory}.tar"
    names = ("layergate.test/convert:before", "layergate.test/convert:after")
    call(["skopeo", "copy", "--quiet", f"oci:{layout}", f"oci-archive:{archive}:{names[0]}"])
    containerd.ctr("images", "import", "--no-unpack", "--index-name", names[0], archive)
    try:
        convert = ["convert", "--estargz", "--oci", "--estargz-compression-level", "1"]
        convert += ["--estargz-chunk-size", str(FAST.chunk_size)]
        containerd.ctr("images", *convert, *names, program="ctr-remote")
        containerd.ctr("images", "export", "--skip-manifest-json", archive, names[1])
        os.mkdir(directory)
        call(["tar", "-x", "-f", archive, "-C", directory])
        yield directory
    finally:
        os.unlink(archive)


def toc_digest_by_ctr_remote(containerd: Containerd, digest: str, form: LayerFormat) -> str:
    """What `ctr-remote images get-toc-digest` says of a layer in containerd's content store."""
    options = ["--zstdchunked"] if form is LayerFormat.ZSTD_CHUNKED else []
    return containerd.ctr("images", "get-toc-digest", *options, digest, program="ctr-remote").strip()


def annotation(annotations: Mapping[str, str]) -> str:
    """The digest of the table of contents that a layer's annotations name."""
    return annotations["containerd.io/snapshot/stargz/toc.digest"]
