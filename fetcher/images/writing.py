"""What destinations on the local disk share: whole files under final names, and the disk's refusals.

Blocking.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fetcher.errors import DestinationUnusable, StoreError, VerificationError
from fetcher.manifest import Descriptor


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn the system's errors into StoreError, in words about `path`."""
    try:
        yield
    except OSError as error:
        raise refusal(path, error) from error


@contextmanager
def reading(path: str) -> Iterator[None]:
    """The same while `path` is read."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error


def refusal(path: str, error: OSError) -> StoreError:
    """The StoreError for what the system said while `path` was written."""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = f": the file system of {os.path.dirname(path) or '.'} is full"
    return StoreError(f"cannot write {path}: {error.strerror}{hint}", errno=error.errno or 0)


@contextmanager
def appearing(path: str) -> Iterator[str]:
    """A temporary name beside `path` to write to, renamed to `path` at the end, removed on failure.

    Raises OSError.
    """
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name[:100]}.{secrets.token_hex(4)}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def place_file(source: str, target: str, descriptor: Descriptor) -> None:
    """Copy `source`, which is the blob of `descriptor`, to `target`.

    Raises VerificationError for one of another size, StoreError.
    """
    with writing(target):
        size = os.stat(source).st_size
        if size != descriptor.size:
            raise VerificationError(f"{source} has {size} bytes, and {descriptor.digest} {descriptor.size}")
        with appearing(target) as temporary:
            shutil.copyfile(source, temporary)


def place_bytes(data: bytes, target: str) -> None:
    """Write `data` to `target`; raises StoreError."""
    with writing(target), appearing(target) as temporary, open(temporary, "wb") as file:
        file.write(data)


def require_replaceable(path: str, form: str, fits: Callable[[bytes], bool]) -> None:
    """See that `path` is free, or a file of the form that is to replace it.

    `fits` is asked of its first 512 bytes; an empty file may always be replaced. Raises DestinationUnusable,
    StoreError.
    """
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise DestinationUnusable(f"{path} cannot be made: {directory} is no directory")
    with writing(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "no file"
            raise DestinationUnusable(f"{path} exists, and is {kind}")
        with open(path, "rb") as file:
            head = file.read(512)
    if head and not fits(head):
        raise DestinationUnusable(f"{path} exists, and is no {form}")
