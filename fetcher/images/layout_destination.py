"""Writing an image to an OCI image layout, a new one or one that has other images already.

OCI image-spec, "image-layout". Blobs and index.json appear by rename, so whoever reads the layout at any
moment finds it whole. Several processes may write to one layout: each holds DIR shared (flock) for as long
as it counts on blobs that it found, and DIR/blobs alone while it changes index.json.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import Final, Self

from anyio import to_thread

from fetcher.errors import DestinationUnusable, FormatError
from fetcher.images.layout_index import (
    LAYOUT_FILE,
    LAYOUT_VERSION,
    Index,
    blob_name,
    parse_layout_index,
    with_entry,
)
from fetcher.images.writing import place_bytes, place_file, writing
from fetcher.manifest import Descriptor, Document
from fetcher.reference import parse_digest

_INDEX: Final = "index.json"


class LayoutDestination:
    """The image `tag` of the layout in `directory`; both are made if they are not there.

    An image that has the tag already gives it away; its blobs stay. Without a tag the image becomes
    the only one without.
    """

    def __init__(self, directory: str, tag: str | None) -> None:
        self._directory = directory
        self._tag = tag
        self._lock: int | None = None
        self._made: list[str] = []
        self._put: list[str] = []
        self._finished = False

    @property
    def name(self) -> str:
        """See ImageDestination."""
        return f"oci:{self._directory}" + ("" if self._tag is None else f":{self._tag}")

    async def __aenter__(self) -> Self:
        """Raises DestinationUnusable for a place that is no layout, StoreError."""
        await to_thread.run_sync(self._begin)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await to_thread.run_sync(self._end)

    async def has(self, descriptor: Descriptor) -> bool:
        """See ImageDestination."""
        return await to_thread.run_sync(self._has, descriptor)

    async def put_file(self, descriptor: Descriptor, path: str) -> None:
        """See ImageDestination; the file is copied. Raises VerificationError, StoreError."""
        target = self._new_blob(descriptor)
        await to_thread.run_sync(place_file, path, target, descriptor)

    async def put_bytes(self, descriptor: Descriptor, data: bytes) -> None:
        """See ImageDestination."""
        await to_thread.run_sync(place_bytes, data, self._new_blob(descriptor))

    async def finish(self, root: Document) -> None:
        """See ImageDestination."""
        descriptor = Descriptor(root.digest, len(root.data), root.media_type, {})
        if not await self.has(descriptor):
            await self.put_bytes(descriptor, root.data)
        await to_thread.run_sync(self._list, root)
        self._finished = True

    def _begin(self) -> None:
        self._check()
        with writing(self._directory):
            self._make(self._directory)
            self._lock = _locked(self._directory, fcntl.LOCK_SH)
            try:
                self._make(self._path("blobs/sha256"))
            except OSError:
                self._end()
                raise

    def _check(self) -> None:
        """See that the place is free, or a layout."""
        if os.path.isdir(self._directory):
            with writing(self._directory):
                content = os.listdir(self._directory)
            # One that another process is only just writing has its blobs alone.
            if not {_INDEX, LAYOUT_FILE}.intersection(content) and content not in ([], ["blobs"]):
                raise DestinationUnusable(f"{self._directory} exists, and is no OCI layout")
            self._index()
        elif os.path.lexists(self._directory):
            raise DestinationUnusable(f"{self._directory} exists, and is no directory")

    def _make(self, path: str) -> None:
        """Make a directory and those above it; what was made is remembered."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self._make(parent)
        with suppress(FileExistsError):
            os.mkdir(path)
            self._made.append(path)

    def _end(self) -> None:
        if self._lock is not None:
            if not self._finished:
                self._remove()
            os.close(self._lock)
            self._lock = None

    def _remove(self) -> None:
        """Remove what nobody needs: unless somebody else is writing, who may count on our blobs."""
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for path in self._put:
            with suppress(OSError):
                os.unlink(path)
        for directory in reversed(self._made):
            with suppress(OSError):  # not empty: others have put something there
                os.rmdir(directory)

    def _list(self, root: Document) -> None:
        """Give the image its name in index.json."""
        path = self._path(_INDEX)
        with writing(path):
            lock = _locked(self._path("blobs"), fcntl.LOCK_EX)
        try:
            if not os.path.exists(self._path(LAYOUT_FILE)):
                place_bytes(LAYOUT_VERSION, self._path(LAYOUT_FILE))
            place_bytes(with_entry(self._index(), root, self._tag), path)
        finally:
            os.close(lock)

    def _index(self) -> Index | None:
        path = self._path(_INDEX)
        if not os.path.exists(path):
            return None
        try:
            with writing(path), open(path, "rb") as file:
                return parse_layout_index(file.read())
        except FormatError as error:
            raise DestinationUnusable(f"{path}: {error}") from error

    def _has(self, descriptor: Descriptor) -> bool:
        try:
            return os.stat(self._blob(descriptor)).st_size == descriptor.size
        except OSError:
            return False

    def _new_blob(self, descriptor: Descriptor) -> str:
        """Where a blob belongs; it is removed again if the image is not finished."""
        path = self._blob(descriptor)
        if not os.path.exists(path):
            self._put.append(path)
        return path

    def _blob(self, descriptor: Descriptor) -> str:
        return self._path(blob_name(parse_digest(descriptor.digest)))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _locked(directory: str, how: int) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
    except BaseException:
        os.close(fd)
        raise
    return fd
