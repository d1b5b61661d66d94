"""What can go wrong between us and containerd.

    ContainerdError               a SnapshotterError, so that commands tell it in one line
    ├── ContainerdUnreachable     no socket, no permission, or nobody listens; .address
    ├── SnapshotterUnknown        containerd has no snapshotter of that name; .snapshotter
    ├── SnapshotterUnreachable    it has one, which does not answer; .snapshotter
    └── ContainerdRefused         any other status; .code and .details as containerd gave them
        ├── ContainerdNotFound
        ├── ContainerdAlreadyExists
        └── ContentLocked         another client writes the same content now

`grpc.aio.AioRpcError` becomes one of these in `snapshotter.containerd.client` and nowhere else.
Messages name what failed and say what to do, so a command can print them as they are.
"""

from __future__ import annotations

from snapshotter.errors import SnapshotterError


class ContainerdError(SnapshotterError):
    """Base of everything that talking to containerd raises."""


class ContainerdUnreachable(ContainerdError):
    """containerd's socket `address` cannot be reached."""

    def __init__(self, message: str, *, address: str) -> None:
        super().__init__(message)
        self.address = address


class SnapshotterUnknown(ContainerdError):
    """containerd has no snapshotter of the name `snapshotter`."""

    def __init__(self, snapshotter: str, *, known: tuple[str, ...]) -> None:
        super().__init__(
            f"containerd has no snapshotter {snapshotter!r} (it has {', '.join(known) or 'none'}): "
            f'add [proxy_plugins.{snapshotter}] with type = "snapshot" and address = "SOCKET" '
            "to /etc/containerd/config.toml and restart containerd"
        )
        self.snapshotter = snapshotter


class SnapshotterUnreachable(ContainerdError):
    """containerd knows the snapshotter `snapshotter`, but nothing answers at its socket."""

    def __init__(self, snapshotter: str, *, details: str) -> None:
        super().__init__(
            f"snapshotter {snapshotter!r} does not answer containerd ({details}): "
            "start `layergate serve`, and compare its --address with the proxy plugin's"
        )
        self.snapshotter = snapshotter


class ContainerdRefused(ContainerdError):
    """containerd answered with an error: `code` is gRPC's name of it, `details` containerd's text."""

    def __init__(self, action: str, *, code: str, details: str) -> None:
        super().__init__(f"containerd could not {action}: {details} ({code})")
        self.code = code
        self.details = details


class ContainerdNotFound(ContainerdRefused):
    """What was asked for is not there."""


class ContainerdAlreadyExists(ContainerdRefused):
    """What was to be made is there already."""


class ContentLocked(ContainerdRefused):
    """Another client is writing the same content at this moment."""
