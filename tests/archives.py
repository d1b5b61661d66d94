"""Hand-made archives of images, as the tools of different times wrote them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import zstandard

from tests import oci
from tests.estargz import Layer, plain

Member = tuple[tarfile.TarInfo, bytes]


def file_member(name: str, content: bytes = b"") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def directory_member(name: str) -> Member:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info, b""


def link_member(name: str, target: str, *, hard: bool = False) -> Member:
    info = tarfile.TarInfo(name)
    info.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    info.linkname = target
    return info, b""


def write_tar(path: Path, members: Iterable[Member]) -> Path:
    """The tar at `path`."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


def layer_tar(layer: Layer) -> bytes:
    """A layer's tar, uncompressed."""
    return gzip.decompress(layer.blob)


def zstd_layer_tar(layer: Layer) -> bytes:
    """A layer's tar in one zstd frame."""
    return zstandard.ZstdCompressor().compress(layer_tar(layer))


def config(layers: Sequence[Layer]) -> bytes:
    """A config for the layers."""
    return oci.image(layers).config


def saved_json(*images: Mapping[str, object]) -> Member:
    """manifest.json."""
    return file_member("manifest.json", json.dumps(list(images)).encode())


def docker_save_1_10(path: Path, layers: Sequence[Layer], *, names: Sequence[str] = ("old:1",)) -> Path:
    """As docker 1.10 to 24 wrote it: a directory a layer, the second of equal layers a link to the first."""
    members: list[Member] = []
    files = []
    seen: dict[str, str] = {}
    for number, layer in enumerate(layers):
        name = f"{number + 1:064x}"
        files.append(f"{name}/layer.tar")
        members += [directory_member(f"{name}/"), file_member(f"{name}/VERSION", b"1.0")]
        if layer.diff_id in seen:
            members.append(link_member(files[-1], f"../{seen[layer.diff_id]}"))
        else:
            members.append(file_member(files[-1], layer_tar(layer)))
            seen[layer.diff_id] = files[-1]
    image_config = config(layers)
    name = f"{oci.digest(image_config)[7:]}.json"
    members += [
        file_member(name, image_config),
        saved_json({"Config": name, "RepoTags": list(names) or None, "Layers": files}),
        file_member("repositories", b"{}"),
    ]
    return write_tar(path, members)


def podman_save(path: Path, layers: Sequence[Layer], *, names: Sequence[str] = ("podman:1",)) -> Path:
    """As podman and skopeo write it: layers by their DiffIDs, with links for docker before 1.10."""
    members: list[Member] = []
    for number, layer in enumerate(layers):
        members.append(file_member(f"{layer.diff_id[7:]}.tar", layer_tar(layer)))
        members.append(link_member(f"{number + 1:064x}/layer.tar", f"../{layer.diff_id[7:]}.tar"))
    image_config = config(layers)
    name = f"{oci.digest(image_config)[7:]}.json"
    files = [f"{layer.diff_id[7:]}.tar" for layer in layers]
    members += [
        file_member(name, image_config),
        saved_json({"Config": name, "RepoTags": list(names), "Layers": files}),
    ]
    return write_tar(path, members)


def crane_save(path: Path, layers: Sequence[Layer], *, names: Sequence[str] = ("crane:1",)) -> Path:
    """As go-containerregistry, bazel and kaniko write it: layers gzip, the config named by its digest."""
    image_config = config(layers)
    name = oci.digest(image_config)
    members = [file_member(f"{layer.digest[7:]}.tar.gz", layer.blob) for layer in layers]
    files = [f"{layer.digest[7:]}.tar.gz" for layer in layers]
    saved = saved_json({"Config": name, "RepoTags": list(names), "Layers": files})
    return write_tar(path, [file_member(name, image_config), *members, saved])


def docker_save_25(path: Path, image: oci.Image, *, name: str = "docker.io/library/new:1") -> Path:
    """As docker 25 and later write it: an OCI layout, and manifest.json beside it."""
    members = [file_member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')]
    blobs = image.blobs | {image.digest: image.manifest}
    members += [file_member(f"blobs/{key.replace(':', '/')}", data) for key, data in blobs.items()]
    entry = {
        "mediaType": oci.MANIFEST,
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name.rpartition(":")[2],
        },
    }
    members.append(file_member("index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()))
    saved = {
        "Config": f"blobs/{oci.digest(image.config).replace(':', '/')}",
        "RepoTags": [name],
        "Layers": [f"blobs/{layer.digest.replace(':', '/')}" for layer in image.layers],
    }
    return write_tar(path, [*members, saved_json(saved)])


EMPTY: Final = plain([])
"""A layer without anything in it."""
