"""What can go wrong between containerd's request and our answer.

    SnapshotterError
    ├── AlreadyExists              the key or name is taken; for a remote layer: there is no need to unpack it
    ├── NotFound                   no snapshot of that key, name or parent
    ├── InvalidArgument            a request that cannot be meant
    │   └── InvalidFilter          a filter of List that cannot be parsed
    ├── FailedPrecondition         a request that the snapshot's state forbids
    ├── Unavailable                the lazy part cannot serve this snapshot now; a later try may succeed
    │   └── LayerFailed            a layer could not be brought here; .kind names the error behind it
    ├── MetadataError              the database refused; .path says which file
    │   ├── MetadataInUse          another process holds it
    │   ├── MetadataForeign        the file is not one of ours
    │   ├── MetadataTooNew         a newer layergate wrote it
    │   └── MetadataCorrupt        it is damaged
    ├── ConfigError                the configuration file cannot be read or has an error
    ├── ServeUnreachable           a command that needs `layergate serve` got no answer from it
    ├── SocketUnusable             no socket can be made at the path; .path
    └── SocketInUse                somebody answers on the socket already; .path

They become gRPC statuses in one table, in `snapshotter.service`. The wording
of FailedPrecondition on Remove is part of containerd's conformance suite.
"""

from __future__ import annotations


class SnapshotterError(Exception):
    """Base of everything that the snapshotter raises by itself."""


class AlreadyExists(SnapshotterError):
    """The key or name is taken, or the remote layer asked for is there."""


class NotFound(SnapshotterError):
    """No snapshot has that key or name."""


class InvalidArgument(SnapshotterError):
    """A request that contradicts itself or names what it must not."""


class InvalidFilter(InvalidArgument):
    """A filter that does not follow containerd's filter syntax."""


class FailedPrecondition(SnapshotterError):
    """The snapshot's kind or its children forbid what was asked."""


class Unavailable(SnapshotterError):
    """The lazy part cannot serve a snapshot now; trying again later may help."""


class LayerFailed(Unavailable):
    """A layer could not be brought here; `kind` is the name of fetcher's or mounter's error behind it."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class MetadataError(SnapshotterError):
    """The metadata database failed; `path` is its file."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class MetadataInUse(MetadataError):
    """Another process holds the database."""


class MetadataForeign(MetadataError):
    """The file is no database of ours."""


class MetadataTooNew(MetadataError):
    """The database has a schema that this version does not know yet."""


class MetadataCorrupt(MetadataError):
    """The database is damaged."""


class ConfigError(SnapshotterError):
    """The configuration file cannot be read, is not TOML, or has an unknown or wrong key."""


class ServeUnreachable(SnapshotterError):
    """A command that needs `layergate serve` got no answer from it."""


class SocketUnusable(SnapshotterError):
    """No socket can be made at the path: it is too long, or the file system refuses."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class SocketInUse(SnapshotterError):
    """The socket's path is taken by a living server, or by something that is no socket."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
