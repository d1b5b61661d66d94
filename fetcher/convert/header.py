"""One tar header block: 512 bytes to fields, and fields changed in place. Pure; no I/O.

    0   100 name        124  12 size       156   1 type        265  32 uname      337   8 devminor
    100   8 mode        136  12 mtime      157 100 linkname    297  32 gname      345 155 prefix (POSIX)
    108   8 uid         148   8 checksum   257   6 magic       329   8 devmajor   345  12 atime (GNU)
    116   8 gid                            263   2 version                        357  12 ctime (GNU)

Reads what archive/tar of Go reads, and as it does, because that is what every unpacker of images uses:
POSIX ustar, GNU, star and the old V7 form, and numbers in octal or base-256.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from fetcher.errors import FormatError

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)
OCTAL_LIMIT: Final = 8**11
"""The first size that eleven octal digits cannot say."""

REGULAR: Final = b"0"
OLD_REGULAR: Final = b"\0"
HARD_LINK: Final = b"1"
SYMLINK: Final = b"2"
CHARACTER: Final = b"3"
BLOCK_DEVICE: Final = b"4"
DIRECTORY: Final = b"5"
FIFO: Final = b"6"
PAX: Final = b"x"
PAX_GLOBAL: Final = b"g"
GNU_NAME: Final = b"L"
GNU_LINK: Final = b"K"
GNU_SPARSE: Final = b"S"

_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_CHECKSUM: Final = slice(148, 156)
_SPACES: Final = sum(b"        ")
_DIGITS: Final = b"01234567"
_INTEGER_LIMIT: Final = 1 << 63


class Header(msgspec.Struct, gc=False):
    """The fields of one block; names are bytes, as they may be in any encoding."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    type: bytes
    link: bytes
    user: bytes
    group: bytes
    major: int
    minor: int


def parse_header(block: bytes, offset: int) -> Header:
    """The fields of the header block at byte `offset`; raises FormatError, saying what is wrong."""
    (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        checksum,
        kind,
        link,
        magic,
        version,
        user,
        group,
        major,
        minor,
        prefix,
    ) = _FIELDS.unpack(block)
    if (stated := _number(checksum, "checksum", offset)) != _checksum(block) and stated != _signed(block):
        raise FormatError(f"the tar header at byte {offset} is damaged: its checksum does not fit")
    header = Header(
        _text(name),
        _number(mode, "mode", offset),
        _number(uid, "uid", offset),
        _number(gid, "gid", offset),
        _number(size, "size", offset),
        _number(mtime, "mtime", offset),
        kind,
        _text(link),
        b"",
        b"",
        0,
        0,
    )
    if header.size < 0:
        raise FormatError(f"the tar header at byte {offset} has the size {header.size}")
    if magic[:5] == b"ustar":
        header.user = _text(user)
        header.group = _text(group)
        if kind in (CHARACTER, BLOCK_DEVICE):
            header.major = _number(major, "device number", offset)
            header.minor = _number(minor, "device number", offset)
        before = _prefix(prefix, magic + version, block)
        if before:
            header.name = before + b"/" + header.name
    return header


def _prefix(field: bytes, magic: bytes, block: bytes) -> bytes:
    """What stands before the name, in those forms that have it."""
    if magic == b"ustar\x0000":
        return _text(field[:131] if block[508:] == b"tar\0" else field)
    if magic == b"ustar  \0" and field[0] and _text(field).isascii():
        # GNU has atime and ctime here. Go before 1.8 wrote a name's beginning to it all the same, and such
        # layers are still about: where these are no numbers, this is a prefix.
        try:
            for time in (field[:12], field[12:24]):
                _number(time, "time", 0)
        except FormatError:
            return _text(field)
    return b""


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, what: str, offset: int) -> int:
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        if field[0] & 0x40:
            value -= 1 << bits
        if -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            return value
    else:
        digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
        if not digits:
            return 0
        if not digits.strip(_DIGITS):
            return int(digits, 8)
    raise FormatError(f"the tar header at byte {offset} is damaged: its {what} is {field!r}")


def _checksum(block: bytes) -> int:
    return sum(block) - sum(block[_CHECKSUM]) + _SPACES


def _signed(block: bytes) -> int:
    """The checksum of some old tars, which took bytes as signed."""
    return _checksum(block) - 256 * sum(
        byte > 0x7F for byte in block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    )


def patch(block: bytes, fields: dict[int, bytes]) -> bytes:
    """The block with the bytes at some offsets replaced, and a checksum that fits."""
    changed = bytearray(block)
    for offset, value in fields.items():
        changed[offset : offset + len(value)] = value
    changed[_CHECKSUM] = b"%06o\0 " % _checksum(bytes(changed))
    return bytes(changed)


def new_header(name: bytes, size: int, *, kind: bytes = REGULAR, mode: int = 0o644) -> bytes:
    """A POSIX header block of user and group 0 at time 0; `name` has at most 100 bytes."""
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, 0)
    return patch(ZERO_BLOCK, {0: name, 100: numbers, 156: kind, 257: b"ustar\x0000"})


def padding(size: int) -> int:
    """How many bytes fill up the last block of `size` bytes."""
    return -size % BLOCK
