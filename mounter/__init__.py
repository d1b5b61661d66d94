"""From a layer's tree to a mount.

META trees and lazy lowers over data-only layers, the gate (a FUSE session in a
process of its own), overlay options, mount system calls, and probes of what
this host can do. Mounts are made by plain, blocking functions that processes
may call side by side; what a mount is made of is said in the functions' modules.
"""

from mounter.errors import MounterError, MountFailed, SteeringAttribute, UnsupportedAttribute
from mounter.lowers import (
    Directory,
    LazyLower,
    Meta,
    Part,
    lazy_id,
    lazy_lowers,
    lazy_path,
    mount_lazy_lower,
    release_lazy_lower,
)
from mounter.meta import MetaForm, ensure_meta, meta_path, metas, release_meta
from mounter.probe import Check, Mode, Probe

__all__ = [
    "Check",
    "Directory",
    "LazyLower",
    "Meta",
    "MetaForm",
    "Mode",
    "MountFailed",
    "MounterError",
    "Part",
    "Probe",
    "SteeringAttribute",
    "UnsupportedAttribute",
    "ensure_meta",
    "lazy_id",
    "lazy_lowers",
    "lazy_path",
    "meta_path",
    "metas",
    "mount_lazy_lower",
    "release_lazy_lower",
    "release_meta",
]
