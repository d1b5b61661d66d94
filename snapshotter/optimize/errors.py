"""What can go wrong between an image and a record of its workload.

SnapshotterError
└── OptimizeError
    ├── SandboxRefused      runc is missing, or did not run the container; the message has its words
    ├── WorkloadFailed      the workload ended by itself with an exit status above zero; .status
    └── NoSuchRecord        nothing has been recorded of the image
"""

from __future__ import annotations

from snapshotter.errors import SnapshotterError


class OptimizeError(SnapshotterError):
    """Base of what goes wrong with optimizing alone."""


class SandboxRefused(OptimizeError):
    """The sandbox could not be made, or its container not be started."""


class WorkloadFailed(OptimizeError):
    """The workload ended by itself, and not well; `status` is its exit status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NoSuchRecord(OptimizeError):
    """Nothing has been recorded of the image, or of none at all."""
