"""Byte ranges in HTTP's words (RFC 9110, section 14). Pure; no I/O.

Everywhere else ranges are half-open; here, and only here, they become
inclusive and back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SATISFIED: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_UNSATISFIED: Final = re.compile(r"bytes \*/([0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a 206 carries: [start, end) of a whole of `total` bytes, None if the server does not say."""

    start: int
    end: int
    total: int | None


def range_header(start: int, end: int) -> str:
    """The Range header for the non-empty [start, end)."""
    return f"bytes={start}-{end - 1}"


def suffix_header(length: int) -> str:
    """The Range header for the last `length` bytes."""
    return f"bytes=-{length}"


def parse_content_range(text: str) -> ContentRange | None:
    """The Content-Range of a 206; None if it makes no sense."""
    match = _SATISFIED.fullmatch(text)
    if match is None:
        return None
    start, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    if end <= start or (total is not None and end > total):
        return None
    return ContentRange(start, end, total)


def parse_unsatisfied_range(text: str) -> int | None:
    """The whole's size as a 416 gives it in Content-Range; None if it does not."""
    match = _UNSATISFIED.fullmatch(text)
    return None if match is None else int(match[1])


def parse_length(text: str) -> int | None:
    """The bytes that a Content-Length announces; None if it does not."""
    return int(text) if _LENGTH.fullmatch(text) else None
