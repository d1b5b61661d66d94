"""Domain errors to exit codes, in one place. The table is part of the interface: docs/cli.md."""

from __future__ import annotations

import errno
from typing import Final

import fetcher.errors
import mounter.errors
from fetcher.errors import (
    DestinationUnusable,
    FetchError,
    FormatError,
    InvalidReference,
    NotEstargz,
    RegistryError,
    RegistryNotFound,
    RegistryUnauthorized,
    SourceNotFound,
    StoreError,
    VerificationError,
)
from mounter.errors import MounterError
from snapshotter.errors import ConfigError, LayerFailed, SnapshotterError, SocketUnusable
from snapshotter.manual.errors import (
    KeeperFailed,
    LazyImpossible,
    MountedAlready,
    MountpointBusy,
    MountpointMissing,
    MountpointNotEmpty,
    NoSuchLayer,
    NotMounted,
    NotPermitted,
)
from snapshotter.optimize.errors import NoSuchRecord, SandboxRefused, WorkloadFailed

USAGE: Final = 2
PARTLY: Final = 20
"""`cache clean` left what is in use, though it was named."""
_CODES: Final[list[tuple[type[Exception], int]]] = [
    (InvalidReference, USAGE),
    (ConfigError, USAGE),
    (SocketUnusable, USAGE),
    (RegistryNotFound, 3),
    (SourceNotFound, 3),
    (RegistryUnauthorized, 4),
    (RegistryError, 5),
    (VerificationError, 6),
    (DestinationUnusable, 22),
    (NotEstargz, 14),
    (FormatError, 6),
    (StoreError, 7),
    (MounterError, 8),
    (FetchError, 1),
    (MountpointMissing, 10),
    (MountpointNotEmpty, 11),
    (MountedAlready, 12),
    (NoSuchLayer, 13),
    (NotPermitted, 15),
    (LazyImpossible, 16),
    (MountpointBusy, 17),
    (NotMounted, 18),
    (NoSuchRecord, 3),
    (SandboxRefused, 1),
    (WorkloadFailed, 23),
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
    if isinstance(error, KeeperFailed):
        return error.code
    kind = _kind_behind(error) if isinstance(error, LayerFailed) else type(error)
    return next((code for one, code in _CODES if issubclass(kind, one)), 1)


def _kind_behind(error: LayerFailed) -> type[BaseException]:
    """The class of the error that a worker process met, of which only the name has come here."""
    for module in (fetcher.errors, mounter.errors):
        found = getattr(module, error.kind, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    return type(error)
