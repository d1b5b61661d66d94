"""An OCI image layout, written from a root file system that grows step by step.

`Layout.commit` is called after each step, and takes what has changed since the last one
as a layer: changed paths, told by inode and ctime, and vanished ones as whiteouts.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Collection, Mapping
from typing import IO, TYPE_CHECKING, Final

from tests.estargz import GZIP_LAYER
from tests.oci import ARCHITECTURE, CONFIG, MANIFEST, digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

IMAGE_NAME: Final = "io.containerd.image.name"
"""The annotation by which `ctr images import` names an image."""


_Identity = tuple[int, int, int]


class Layout:
    """The image of the root file system `root`, being written to `directory`."""

    def __init__(self, directory: str, root: str) -> None:
        self._directory = directory
        self._root = root
        self._seen: dict[str, _Identity] = {}
        self._diff_ids: list[str] = []
        self._layers: list[dict[str, object]] = []
        os.makedirs(os.path.join(directory, "blobs/sha256"))

    def commit(self, *, opaque: Collection[str] = ()) -> int:
        """Write what has changed as one layer; how many entries it has.

        `opaque` are directories that hide all that was in them, in place of single whiteouts.
        """
        before, self._seen = self._seen, _identities(self._root)
        changed = {path for path, identity in self._seen.items() if before.get(path) != identity}
        # With their parents, as every builder does; ctr-remote's sorting relies on it.
        changed |= {parent for path in (*changed, *opaque) for parent in _parents(path)} | {*opaque}
        whiteouts = []
        for path in before.keys() - self._seen.keys():
            parent, _, name = path.rpartition("/")
            if _is_directory(self._seen, parent) and parent not in opaque:
                whiteouts.append(os.path.join(parent, f".wh.{name}"))
        whiteouts += [f"{path}/.wh..wh..opq" for path in opaque]
        temporary = os.path.join(self._directory, "layer")
        with open(temporary, "wb") as file:
            blob = _Hashing(file)
            with gzip.GzipFile("", "wb", 6, blob, mtime=0) as compressed:
                content = _Hashing(compressed)
                with tarfile.open(mode="w|", fileobj=content, format=tarfile.PAX_FORMAT) as tar:
                    for path in sorted(changed):
                        _add(tar, os.path.join(self._root, path), path)
                    for path in sorted(whiteouts):
                        tar.addfile(tarfile.TarInfo(path))
        self._diff_ids.append(content.digest)
        self._layers.append(_descriptor(GZIP_LAYER, blob.digest, os.path.getsize(temporary)))
        os.rename(temporary, self._blob(blob.digest))
        return len(changed) + len(whiteouts)

    def finish(self, name: str, config: Mapping[str, object]) -> None:
        """Write config, manifest and index; `config` is the OCI config's part of that name."""
        config_descriptor = self._store(
            CONFIG,
            {
                "architecture": ARCHITECTURE,
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": self._diff_ids},
            },
        )
        manifest = self._store(
            MANIFEST,
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": config_descriptor,
                "layers": self._layers,
            },
        )
        manifest["annotations"] = {IMAGE_NAME: name}
        self._write("index.json", {"schemaVersion": 2, "manifests": [manifest]})
        self._write("oci-layout", {"imageLayoutVersion": "1.0.0"})

    def _store(self, media_type: str, value: Mapping[str, object]) -> dict[str, object]:
        text = json.dumps(value).encode()
        with open(self._blob(digest(text)), "wb") as file:
            file.write(text)
        return _descriptor(media_type, digest(text), len(text))

    def _blob(self, digest: str) -> str:
        return os.path.join(self._directory, "blobs", *digest.split(":"))

    def _write(self, name: str, value: Mapping[str, object]) -> None:
        with open(os.path.join(self._directory, name), "w", encoding="utf-8") as file:
            json.dump(value, file)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


class _Hashing(io.RawIOBase):
    """Hands on what is written, and hashes it."""

    def __init__(self, sink: IO[bytes] | gzip.GzipFile) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self._hash.update(data)
        return self._sink.write(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self._hash.hexdigest()


def _identities(root: str) -> dict[str, _Identity]:
    """Inode, ctime and mode of each path below `root`."""
    found = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        with os.scandir(os.path.join(root, directory)) as entries:
            for entry in entries:
                path = os.path.join(directory, entry.name)
                status = entry.stat(follow_symlinks=False)
                found[path] = (status.st_ino, status.st_ctime_ns, status.st_mode)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(path)
    return found


def _is_directory(identities: Mapping[str, _Identity], path: str) -> bool:
    return not path or (path in identities and stat.S_ISDIR(identities[path][2]))


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _add(tar: tarfile.TarFile, source: str, name: str) -> None:
    info = tar.gettarinfo(source, name)
    # What a host calls the ids, and parts of a second, are not the image's business.
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)
    info.pax_headers = {
        f"SCHILY.xattr.{key}": os.getxattr(source, key, follow_symlinks=False).decode(
            "utf-8", "surrogateescape"
        )
        for key in os.listxattr(source, follow_symlinks=False)
    }
    if info.isreg():
        with open(source, "rb") as file:
            tar.addfile(info, file)
    else:
        tar.addfile(info)
