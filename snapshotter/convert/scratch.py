"""A directory for layers on their way, gone with the block whatever ends it; and bringing layers to it.

It is made below $TMPDIR, /tmp otherwise. On the event loop; files are written in threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from anyio import to_thread

from fetcher.blob import Blob
from fetcher.errors import StoreError, VerificationError
from fetcher.manifest import Descriptor

_BLOCK: Final = 1 << 20
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def scratch_directory() -> Iterator[str]:
    """An empty directory, removed with all that is in it at the end. Raises StoreError."""
    try:
        directory = tempfile.mkdtemp(prefix="layergate-convert-")
    except OSError as error:
        raise StoreError(
            f"cannot make a scratch directory: {error.strerror}", errno=error.errno or 0
        ) from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def scratch_errors(directory: str) -> Iterator[None]:
    """Turn the system's errors into StoreError, and say of any what to do when the disk is full."""
    try:
        yield
    except StoreError as error:
        if error.errno in _FULL:
            raise _full(directory) from error
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise _full(directory) from error
        raise StoreError(
            f"cannot work in {directory}: {error.strerror or error}", errno=error.errno or 0
        ) from error


async def fetch_blob(blob: Blob, descriptor: Descriptor, path: str, done: Callable[[int], None]) -> None:
    """Bring a blob to the file `path`, verified; `done` is told how many of its bytes are there.

    Raises VerificationError, any other FetchError of the blob's, StoreError.
    """
    directory = os.path.dirname(path)
    with scratch_errors(directory):
        space = os.statvfs(directory)
        if space.f_bavail * space.f_frsize < descriptor.size:
            raise _full(directory, descriptor.size)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    digest = hashlib.sha256()
    count = 0
    pending = bytearray()
    try:
        async with blob.stream(0, descriptor.size) as blocks:
            async for block in blocks:
                pending += block
                count += len(block)
                if len(pending) >= _BLOCK:
                    await to_thread.run_sync(_write, fd, digest, bytes(pending), directory)
                    pending.clear()
                    done(count)
        await to_thread.run_sync(_write, fd, digest, bytes(pending), directory)
    finally:
        os.close(fd)
    actual = f"sha256:{digest.hexdigest()}"
    if actual != descriptor.digest:
        raise VerificationError(f"the blob {descriptor.digest} came with other content ({actual})")
    done(count)


def _write(fd: int, digest: hashlib._Hash, data: bytes, directory: str) -> None:
    digest.update(data)
    with scratch_errors(directory):
        while data:
            data = data[os.write(fd, data) :]


def _full(directory: str, wanted: int | None = None) -> StoreError:
    need = "" if wanted is None else f" for a layer of {wanted / 1e6:.0f} MB"
    return StoreError(
        f"no space left in {directory}{need}: set TMPDIR to a directory with more", errno=errno.ENOSPC
    )
