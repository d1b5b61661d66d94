"""PAX extended headers: records to bytes and back (POSIX.1-2017, pax, "pax Extended Header"). Pure; no I/O.

A record is `<length> <keyword>=<value>\\n`; its length counts all of it. Values may hold any bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fetcher.errors import FormatError

Records = list[tuple[bytes, bytes]]
"""Keyword and value in the header's order; a keyword may come more than once."""

XATTR: Final = b"SCHILY.xattr."
GNU_SPARSE: Final = b"GNU.sparse."
_TEXTS: Final = (b"path", b"linkpath", b"uname", b"gname")


def parse_records(data: bytes, offset: int) -> Records:
    """The records of the extended header whose content is at byte `offset`; raises FormatError."""
    records: Records = []
    position = 0
    while position < len(data):
        blank = data.find(b" ", position, position + 20)
        digits = data[position:blank] if blank > 0 else b""
        size = int(digits) if digits.isdigit() else 0
        end = position + size
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if size < 5 or end > len(data) or data[end - 1] != 0x0A or not equals or not key or b"\0" in key:
            raise FormatError(f"the PAX header at byte {offset} is damaged at its byte {position}")
        if key in _TEXTS and b"\0" in value:
            raise FormatError(f"the PAX header at byte {offset} has a zero byte in its {key.decode()}")
        records.append((key, value))
        position = end
    return records


def format_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The records as the content of an extended header, without padding."""
    return b"".join(_record(key, value) for key, value in records)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    size = len(body)
    while (total := len(body) + len(str(size))) != size:
        size = total
    return str(size).encode() + body


def seconds(value: bytes, offset: int) -> int:
    """A time as PAX has it, `-1.25` say, in whole seconds rounded down; raises FormatError."""
    whole, _, fraction = value.partition(b".")
    digits = whole.removeprefix(b"-")
    if not digits.isdigit() or (fraction and not fraction.isdigit()):
        raise FormatError(f"the PAX header at byte {offset} has the time {value[:40]!r}")
    time = int(digits[:20])
    if whole.startswith(b"-"):
        return -time - (1 if fraction.strip(b"0") else 0)
    return time


def number(value: bytes, key: bytes, offset: int) -> int:
    """A decimal number; raises FormatError."""
    if not value.removeprefix(b"-").isdigit() or len(value) > 20:
        raise FormatError(f"the PAX header at byte {offset} has the {key.decode()} {value[:40]!r}")
    return int(value)
