"""Option strings of overlayfs. Pure; mounts nothing.

Two dialects: mount(2) takes one comma-separated string of at most a page, in
which commas, colons and backslashes of a path are escaped; fsconfig(2) takes
each lower directory by itself and as it is. See `mounter.syscalls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

OPTIONS_LIMIT: Final = 4095
"""Bytes of an option string that mount(2) takes: a page less its final zero."""

LAZY_OPTIONS: Final[Mapping[str, str]] = {"metacopy": "on", "redirect_dir": "follow", "xino": "on"}
"""Options of a lazy lower: files by redirect into the data-only layers, one inode number space."""


def escape_path(path: str) -> str:
    """`path` as upperdir= and workdir= of an option string take it."""
    return path.replace("\\", "\\\\").replace(",", "\\,")


def escape_lower(path: str) -> str:
    """`path` as a part of lowerdir= of an option string: there a colon is special as well."""
    return escape_path(path).replace(":", "\\:")


def join_lower(lower: Sequence[str], data: Sequence[str] = ()) -> str:
    """The value of lowerdir=: `lower` from the uppermost down, then data-only layers behind "::"."""
    joined = ":".join(map(escape_lower, lower))
    return "".join([joined, *(f"::{escape_lower(path)}" for path in data)])


def option_string(lower: Sequence[str], data: Sequence[str], options: Mapping[str, str | None]) -> str:
    """All of an overlay's options as mount(2) takes them; an option of value None is a flag."""
    parts = [f"lowerdir={join_lower(lower, data)}"]
    parts += [key if value is None else f"{key}={escape_path(value)}" for key, value in options.items()]
    return ",".join(parts)
