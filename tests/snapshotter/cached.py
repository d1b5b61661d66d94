"""A store with layers in it, complete or not, whose blobs are local files."""

from __future__ import annotations

import os
from pathlib import Path

import anyio

from fetcher.blob import FileBlob
from fetcher.opening import open_layer
from fetcher.plain import PlainLayer
from fetcher.progress import Field
from fetcher.store import FileSource, LayerStore
from fetcher.stream import LayerStream
from snapshotter.cache.values import CachedLayer, LayerState, User
from tests.estargz import Entry, Layer, build, dir, file, hardlink, symlink


def entries(count: int = 5, *, seed: int = 0) -> list[Entry]:
    """A small layer's: files, a hard link, a symlink; different ones for each seed."""
    return [
        dir("usr/", mode=0o755),
        *(file(f"usr/file{number}", bytes([number, seed]) * 1500) for number in range(count)),
        hardlink("usr/linked", "usr/file1"),
        symlink("usr/pointing", "file2"),
        file("usr/empty", b""),
    ]


class CachedNode:
    """A root directory below `path`, and what tests do to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = str(path / "root")
        self.store = LayerStore(self.root)
        self.store.create_directories()

    def add(self, layer: Layer, image: str, *, complete: bool = True) -> str:
        """Open a layer, and bring it here if it is to be complete; its key."""
        return anyio.run(self._add, layer, image, complete)

    def small(self, seed: int, *, image: str = "", complete: bool = True) -> str:
        """A small layer of its own for each seed."""
        return self.add(build(entries(seed=seed)), image or f"registry.test/image:{seed}", complete=complete)

    def blob(self, layer: str) -> Path:
        """Where a layer's blob is."""
        source = self.store.record(layer).sources[0]
        assert isinstance(source, FileSource)
        return Path(source.path)

    def age(self, layer: str, seconds: float) -> None:
        """Say that the layer was last used so long ago."""
        path = os.path.join(self.store.directory(layer), "used")
        Path(path).touch()
        then = os.stat(path).st_mtime - seconds
        os.utime(path, (then, then))

    async def _add(self, layer: Layer, image: str, complete: bool) -> str:
        path = self.path / f"{layer.digest.removeprefix('sha256:')}.blob"
        path.write_bytes(layer.blob)
        blob = FileBlob(str(path))
        key = await open_layer(
            self.store,
            blob,
            digest=layer.digest,
            size=len(layer.blob),
            promised_toc_digest=layer.toc_digest,
            source=FileSource(str(path)),
            image=image,
        )
        if complete:
            plain = PlainLayer(self.store.fs(key), self.store.tree(key))
            progress = self.store.progress(key)
            plain.make_directories()
            stream = LayerStream(blob, plain, progress, counter=Field.FETCHED_BACKGROUND, pause=_go_on)
            await stream.run(0, plain.tree.end)
            plain.finish()
            self.store.mark_complete(key)
            progress.close()
        return key


async def _go_on(_count: int) -> None:
    """No pause."""


def cached_layer(
    name: str, *, size: int = 100, last_used: float = 0.0, used_by: list[User] | None = None, image: str = ""
) -> CachedLayer:
    """A value for decisions: `name` is a letter, which the digest is made of."""
    return CachedLayer(
        layer=name * 20,
        digest="sha256:" + name * 64,
        state=LayerState.COMPLETE,
        bytes=size,
        images=[image] if image else [],
        last_used=last_used,
        used_by=used_by or [],
    )
