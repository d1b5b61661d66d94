"""Random access to the files in a tar, by their offsets and without unpacking. Blocking; no path is opened.

Names are looked up in what the tar itself lists, so none can lead out of it: `..` and absolute names are
words like any other here, and links are followed from entry to entry.
"""

from __future__ import annotations

import enum
import hashlib
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final, Self

from fetcher.blob import FileBlob
from fetcher.errors import FormatError, SourceNotFound, StoreError
from fetcher.images.tar_reading import TarReader, sparse_map
from fetcher.listing import clean_path

MEMBER_LIMIT: Final = 100_000
"""Entries of a tar that are kept; archives of images have some hundreds."""
_LINK_LIMIT: Final = 16
_PIECE: Final = 1 << 20


class MemberKind(enum.Enum):
    """What an entry is, as far as reading it goes."""

    FILE = "file"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    SPARSE = "sparse file"
    DIRECTORY = "directory"
    OTHER = "special file"


@dataclass(frozen=True, slots=True)
class Member:
    """An entry: a file's bytes are [start, start + size) of the tar; `target` is a link's, cleaned."""

    name: str
    kind: MemberKind
    start: int
    size: int
    target: str = ""


class TarIndex:
    """The entries of the tar file `path` by clean name; of a name that comes twice, the last."""

    def __init__(self, path: str, members: Iterable[Member]) -> None:
        self.path = path
        self._members = {member.name: member for member in members}

    @classmethod
    def of(cls, path: str) -> Self:
        """Read the headers of a tar. Raises SourceNotFound, FormatError, StoreError."""
        kept = []
        for member in tar_members(path):
            kept.append(member)
            if len(kept) > MEMBER_LIMIT:
                raise FormatError(f"{path} has more than {MEMBER_LIMIT} entries: no archive of images")
        return cls(path, kept)

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.path

    def __contains__(self, name: str) -> bool:
        return clean_path(name) in self._members

    def member(self, name: str) -> Member:
        """The file that `name` leads to, through links. Raises SourceNotFound, FormatError."""
        wanted = clean_path(name)
        for _ in range(_LINK_LIMIT):
            member = self._members.get(wanted)
            if member is None:
                via = "" if wanted == clean_path(name) else f", to which {name!r} is a link"
                raise SourceNotFound(f"{self.path} lacks {wanted!r}{via}")
            if member.kind is MemberKind.FILE:
                return member
            if member.kind not in (MemberKind.SYMLINK, MemberKind.HARDLINK):
                raise FormatError(f"{self.path}: {name!r} is a {member.kind.value}, and not a plain file")
            wanted = member.target
        raise FormatError(f"{self.path}: {name!r} leads through more than {_LINK_LIMIT} links")

    def read(self, name: str, limit: int) -> bytes:
        """A whole file of at most `limit` bytes. Raises SourceNotFound, FormatError, StoreError."""
        member = self.member(name)
        if member.size > limit:
            raise FormatError(f"{self.path}: {name!r} has {member.size} bytes; {limit} are allowed")
        return self._bytes(member, member.size)

    def head(self, name: str, length: int) -> bytes:
        """The first bytes of a file, as far as it has them. Raises as `read` does."""
        member = self.member(name)
        return self._bytes(member, min(member.size, length))

    def digest(self, name: str) -> str:
        """The digest of a file, which is read whole. Raises as `read` does."""
        member = self.member(name)
        sha256 = hashlib.sha256()
        left = member.size
        with opened(self.path) as file:
            file.seek(member.start)
            while left:
                piece = file.read(min(left, _PIECE))
                if not piece:
                    raise self._cut_off(member)
                sha256.update(piece)
                left -= len(piece)
        return "sha256:" + sha256.hexdigest()

    def blob(self, name: str) -> FileBlob:
        """A file to be read in parts. Raises SourceNotFound, FormatError."""
        member = self.member(name)
        return FileBlob(self.path, start=member.start, size=member.size)

    def _bytes(self, member: Member, length: int) -> bytes:
        with opened(self.path) as file:
            file.seek(member.start)
            data = file.read(length)
        if len(data) < length:
            raise self._cut_off(member)
        return data

    def _cut_off(self, member: Member) -> FormatError:
        return FormatError(f"{self.path} is cut off within {member.name!r}")


def tar_members(path: str) -> Iterator[Member]:
    """The entries of a tar file in its order. Raises SourceNotFound, FormatError, StoreError."""
    with opened(path) as file:
        for entry in TarReader(_SeekableFile(file), path):
            name = clean_path(entry.name)
            kind, target = MemberKind.OTHER, ""
            if sparse_map(entry) is not None:
                kind = MemberKind.SPARSE
            elif entry.isreg():
                kind = MemberKind.FILE
            elif entry.isdir():
                kind = MemberKind.DIRECTORY
            elif entry.issym():
                kind = MemberKind.SYMLINK
                target = clean_path(posixpath.join(posixpath.dirname(name), entry.linkname))
            elif entry.islnk():
                kind, target = MemberKind.HARDLINK, clean_path(entry.linkname)
            yield Member(name, kind, entry.offset_data, entry.size, target)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a regular file for reading; errors of the system become ours within the block too.

    Raises SourceNotFound, FormatError for anything but a regular file, StoreError.
    """
    try:
        # A pipe is not waited for.
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FormatError(f"{path} is no regular file")
            yield file
    except FileNotFoundError:
        raise SourceNotFound(f"there is no file {path}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}", errno=error.errno or 0) from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class _SeekableFile:
    """A file as TarReader goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def skip(self, size: int) -> None:
        self._file.seek(size, os.SEEK_CUR)
