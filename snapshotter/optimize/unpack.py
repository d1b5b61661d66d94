"""Unpacking layers into one root file system, in a process of its own that cannot leave it.

    python -m snapshotter.optimize.unpack ROOTFS LAYER...

A layer may hold a symlink and then a file through it, so the process changes its root to ROOTFS before it
takes an entry. Layers are applied in order, whiteouts and opaque directories removing what is there.
What overlayfs would be steered by (trusted.overlay.*) is left out.

Standard output is one JSON line, an Unpacked or a Refused.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

import fetcher.zstd  # noqa: F401 - loaded late elsewhere, but there are no modules below another root
from fetcher.errors import FetchError, FormatError, StoreError
from fetcher.images.tar_reading import TarReader
from fetcher.listing import Listing, clean_path
from fetcher.nodes import Kind
from fetcher.tree import STEERING
from snapshotter.optimize.inflating import inflated

_XATTR: Final = "SCHILY.xattr."
_ACCOUNTS_LIMIT: Final = 1 << 20


class Unpacked(msgspec.Struct, frozen=True, tag="unpacked"):
    """The root file system's /etc/passwd and /etc/group, as far as they are there."""

    passwd: str
    group: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why it was not unpacked; `errno` is the system's number, 0 if a layer is to blame."""

    message: str
    errno: int


class Unpacker:
    """Applies layers to the directory that is our root."""

    def apply(self, reader: TarReader) -> None:
        """Apply one layer. Raises FormatError, OSError."""
        listing = Listing()
        ours: set[str] = set()
        times: list[tuple[str, float]] = []
        for entry in reader:
            path = clean_path(entry.name)
            directory, _, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                _clear(f"/{directory}", ours)
                continue
            node = listing.add(entry)
            if node is None:
                continue
            if node.kind is Kind.WHITEOUT:
                _remove(f"/{node.path}")
                continue
            while path not in ours and path:
                ours.add(path)
                path = path.rpartition("/")[0]
            self._put(reader, entry, f"/{clean_path(entry.name)}")
            if entry.isdir():
                times.append((f"/{clean_path(entry.name)}", entry.mtime))
        for place, mtime in reversed(times):
            with suppress(OSError):  # replaced by something else later on
                os.utime(place, (mtime, mtime), follow_symlinks=False)

    def _put(self, reader: TarReader, entry: tarfile.TarInfo, path: str) -> None:
        os.makedirs(os.path.realpath(os.path.dirname(path)), exist_ok=True)
        if entry.isdir():
            if os.path.islink(path) or not os.path.isdir(path):
                _remove(path)
                os.mkdir(path)
        else:
            _remove(path)
            if entry.islnk():
                os.link(f"/{clean_path(entry.linkname)}", path, follow_symlinks=False)
                return
            if entry.issym():
                os.symlink(entry.linkname, path)
            elif entry.isfifo():
                os.mkfifo(path)
            elif entry.ischr() or entry.isblk():
                kind = stat.S_IFCHR if entry.ischr() else stat.S_IFBLK
                os.mknod(path, kind, os.makedev(entry.devmajor, entry.devminor))
            else:
                with open(path, "xb") as file:
                    for piece in reader.content(entry):
                        file.write(piece)
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        for name, value in entry.pax_headers.items():
            name = name.removeprefix(_XATTR) if name.startswith(_XATTR) else ""
            if name and not name.startswith(STEERING):
                with suppress(OSError):  # a security module's label, say, of a system unlike this one
                    os.setxattr(path, name, os.fsencode(value), follow_symlinks=False)
        if not entry.issym():
            os.chmod(path, entry.mode & 0o7777)
        if not entry.isdir():
            os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)


def _remove(path: str) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _clear(directory: str, ours: set[str]) -> None:
    """Remove what layers below have in a directory."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if path.lstrip("/") not in ours:
                _remove(path)
            elif stat.S_ISDIR(os.lstat(path).st_mode):
                _clear(path, ours)


def _read(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        return file.read(_ACCOUNTS_LIMIT).decode("utf-8", "replace")
    return ""


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot unpack: {error}", errno=error.errno or 0) from error


def unpack(root: str, layers: list[str]) -> Unpacked:
    """Unpack layers, the lowest first, below `root`, which becomes this process's root directory.

    Raises FormatError, StoreError.
    """
    os.umask(0o022)
    with _refusals():
        files = [open(path, "rb") for path in layers]  # noqa: SIM115 - the process ends with them
        os.chroot(root)
        os.chdir("/")
        for path, file in zip(layers, files, strict=True):
            Unpacker().apply(TarReader(inflated(file, path), path))
    return Unpacked(_read("/etc/passwd"), _read("/etc/group"))


def main() -> int:
    """The entry point; `snapshotter.optimize.run` is its only caller."""
    reply: Unpacked | Refused
    try:
        reply = unpack(sys.argv[1], sys.argv[2:])
    except FormatError as error:
        reply = Refused(str(error), 0)
    except FetchError as error:
        reply = Refused(str(error), getattr(error, "errno", 0))
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
