"""Domain errors to exit codes, in one place. The table is part of the interface: docs/cli.md."""

from __future__ import annotations

import errno
from typing import Final

from fetcher.errors import (
    FetchError,
    FormatError,
    InvalidReference,
    RegistryError,
    RegistryNotFound,
    RegistryUnauthorized,
    StoreError,
    VerificationError,
)
from mounter.errors import MounterError
from snapshotter.errors import ConfigError, SnapshotterError

USAGE: Final = 2
_CODES: Final[list[tuple[type[Exception], int]]] = [
    (InvalidReference, USAGE),
    (ConfigError, USAGE),
    (RegistryNotFound, 3),
    (RegistryUnauthorized, 4),
    (RegistryError, 5),
    (VerificationError, 6),
    (FormatError, 6),
    (StoreError, 7),
    (MounterError, 8),
    (FetchError, 1),
    (SnapshotterError, 9),
]


def is_ours(error: BaseException) -> bool:
    """Whether the error's text is meant for people."""
    return isinstance(error, FetchError | MounterError | SnapshotterError) or (
        isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.ENOSPC)
    )


def sole_cause(error: Exception) -> Exception:
    """The one error in a task group's ExceptionGroup; the group itself if it has several."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def exit_code(error: BaseException) -> int:
    """The exit code of one of our errors, the first of the table that it is an instance of."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), 1)
