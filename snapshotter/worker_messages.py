"""What serve and a worker process say to each other over their pipe; all of it can be pickled."""

from __future__ import annotations

import msgspec

from fetcher.errors import FetchError, RegistryError, StoreError
from fetcher.limits import refused
from fetcher.settings import RegistrySettings
from mounter.errors import MounterError, MountFailed
from mounter.meta import MetaForm


class Task(msgspec.Struct, frozen=True):
    """What a worker is to do; picklable. `meta_only`: make META, of `meta_form`, and be done."""

    root: str
    layer: str
    registry: RegistrySettings
    log_level: str
    meta_form: MetaForm
    meta_only: bool = False


class Sound(msgspec.Struct, frozen=True):
    """The tree is sound, and META will show it whole: the layer can be promised."""


class Ready(msgspec.Struct, frozen=True):
    """META stands, and what is here may be shown: the layer can be mounted."""


class Prefetched(msgspec.Struct, frozen=True):
    """The prefetch range is here."""


class Here(msgspec.Struct, frozen=True):
    """Every file is here, verified: the layer is complete, and will be on disk soon."""


class Complete(msgspec.Struct, frozen=True):
    """The layer is complete and on disk."""


class Failed(msgspec.Struct, frozen=True):
    """The layer cannot go on now. `kind` names the error; `transient` errors are worth another try soon."""

    kind: str
    message: str
    transient: bool


def failed(error: FetchError | MounterError | OSError) -> Failed:
    """What is said of an error that is no defect of ours. Pure."""
    # What the node lacks now, room, memory, a disk that can be written to, it may have soon.
    transient = isinstance(error, RegistryError | StoreError | MountFailed | OSError)
    message = str(error)
    if isinstance(error, OSError):
        message = f"{error.filename}: {refused(error)}" if error.filename else refused(error)
    return Failed(type(error).__name__, message, transient)


Report = Sound | Ready | Prefetched | Here | Complete | Failed


class Continue(msgspec.Struct, frozen=True):
    """Stream the rest, at no more than `bytes_per_second` (0: no limit). Sent again when that changes.

    While less than `min_free` bytes are free on the disk, the stream waits.
    """

    bytes_per_second: int = 0
    min_free: int = 0


class Stop(msgspec.Struct, frozen=True):
    """End now."""


Order = Continue | Stop
