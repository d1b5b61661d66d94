"""The blob being written: to a temporary name beside its place, hashed on the way. Blocking."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator


class BlobFile:
    """Takes the blob's bytes in order; `size` are those written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """The digest of all that was written."""
        return "sha256:" + self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes. Raises OSError."""
        self._hash.update(data)
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            view = view[count:]
        self.size += len(data)


@contextlib.contextmanager
def new_blob(path: str) -> Iterator[BlobFile]:
    """A blob that appears at `path` when the block ends; after an error nothing is left. Raises OSError."""
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name[:200]}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield BlobFile(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
