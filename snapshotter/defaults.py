"""Where things are unless told otherwise."""

from __future__ import annotations

TYPE_CHECKING = False  # `snapshotter.entry` waits for this module, and need not for typing
if TYPE_CHECKING:
    from typing import Final

DEFAULT_CONFIG: Final = "/etc/layergate/config.toml"
DEFAULT_ROOT: Final = "/var/lib/layergate"
DEFAULT_ADDRESS: Final = "/run/layergate/layergate.sock"
DEFAULT_CONTAINERD: Final = "/run/containerd/containerd.sock"
DEFAULT_NAMESPACE: Final = "default"
"""containerd's; CRI's is k8s.io."""
