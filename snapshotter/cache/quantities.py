"""Sizes and durations as people write them. Pure; no I/O.

size        "20GB" (10**9 bytes each), "512MiB" (2**20 each), "4096" (bytes)
duration    "90s", "30m", "24h", "7d"
share       "10%"
"""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)},
}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?) ?([A-Za-z]*)", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%", re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of "20GB" and its like; raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is no size: write it like 500MB, 20GB or 16GiB")
    return int(float(found[1]) * unit)


def parse_duration(text: str) -> float:
    """Seconds of "24h" and its like; raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no duration: write it like 90s, 30m, 24h or 7d")
    return float(found[1]) * _SECONDS[found[2]]


def parse_share(text: str) -> float:
    """The share that "10%" is of a whole, 0 to 1; raises ValueError."""
    found = _SHARE.fullmatch(text.strip())
    if found is None or float(found[1]) > 100:
        raise ValueError(f"{text!r} is no share: write it like 10%")
    return float(found[1]) / 100


def size_text(count: int) -> str:
    """`count` bytes with three digits or so: "1.2 GB"."""
    value = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def age_text(seconds: float) -> str:
    """How long ago something was, in its largest unit: "3 h ago"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"
