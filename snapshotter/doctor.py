"""`layergate doctor`: will lazy pulling work on this host, and what has to be done if not.

Each check looks at one thing and says what it saw; the host is reached through functions that a caller
may replace, and nothing is changed. Blocking.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from typing import Final

from mounter.probe import Check, Mode, Probe, probe
from snapshotter.containerd_config import ContainerdConfig, ContainerdConfigError, load_config
from snapshotter.containerd_host import Containerd, find_containerd

__all__ = ["Check", "as_dict", "lazy_pulling_works", "run_checks"]

MODE: Final = "mode"
CONTAINERD: Final = "containerd"
PLUGIN: Final = "proxy plugin"
FREE_SPACE: Final = "free space"
_REQUIRED: Final = (MODE, CONTAINERD, PLUGIN)

_GIB: Final = 1 << 30
_MODES: Final = {
    Mode.GATE: "gate: containers read native files through data-only layers",
    Mode.STUB: "stub: containers read through FUSE until their next start after the layer is complete",
    Mode.NONE: "none: layers cannot be mounted lazily",
}


def run_checks(
    root: str,
    containerd_config: str,
    *,
    address: str,
    try_mounts: Callable[[str], Probe] = probe,
    find: Callable[[], Containerd] = find_containerd,
    free_bytes: Callable[[str], int] = lambda path: shutil.disk_usage(path).free,
) -> list[Check]:
    """All checks, in the order in which a reader should see them.

    `root` is the data directory, which need not exist yet; `containerd_config` is the path of containerd's
    config.toml; `address` is the socket that our gRPC service listens on. Nothing is raised for a bad host.
    """
    existing = _existing(root)
    found = try_mounts(existing)
    containerd = find()
    checks = [
        _kernel(),
        *found.checks,
        _mode(found),
        _free_space(existing, free_bytes),
        _containerd(containerd),
    ]
    checks.append(_namespace(containerd))
    try:
        config = load_config(containerd_config)
    except FileNotFoundError:
        return [*checks, _no_config(containerd_config, address)]
    except ContainerdConfigError as error:
        return [*checks, Check(PLUGIN, False, str(error), f"mend {containerd_config}")]
    return [*checks, *check_config(config, containerd.version, address=address)]


def lazy_pulling_works(checks: Sequence[Check]) -> bool:
    """Whether containers on this host can start before their image is here: doctor's exit code.

    The mode, containerd and its proxy plugin have to be known to be right, and the disk must not be full. A
    probe that failed counts by the mode that it leads to; warnings about one client do not
    count, because `layergate pull` serves every containerd.
    """
    verdicts = {check.name: check.ok for check in checks}
    return all(verdicts.get(name) for name in _REQUIRED) and verdicts.get(FREE_SPACE) is not False


def as_dict(checks: Sequence[Check]) -> dict[str, object]:
    """The checks as --json prints them; "ok" is true, false, or null for a warning."""
    return {
        "lazy_pulling_works": lazy_pulling_works(checks),
        "checks": [
            {"name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy}
            for check in checks
        ],
    }


def check_config(config: ContainerdConfig, version: str | None, *, address: str) -> list[Check]:
    """What containerd's configuration lets lazy pulling do; `version` None if it is not known. Pure."""
    plugins = [plugin for plugin in config.proxy_plugins if plugin.address == address]
    if not plugins:
        others = ", ".join(plugin.name for plugin in config.proxy_plugins) or "none"
        detail = f"no proxy plugin in {config.path} points at {address} (there: {others})"
        return [Check(PLUGIN, False, detail, _plugin_remedy(config.path, address))]
    plugin = plugins[0]
    if plugin.type != "snapshot":
        detail = f"[proxy_plugins.{plugin.name}] has type {plugin.type!r}"
        return [
            Check(PLUGIN, False, detail, f'set type = "snapshot" in {config.path} and restart containerd')
        ]
    checks = [Check(PLUGIN, True, f"[proxy_plugins.{plugin.name}] points at {address}")]
    checks.append(_kubernetes(config, plugin.name))
    if version is None or major(version) >= 2:
        checks.append(_transfer(config, plugin.name))
        checks.append(_image_usage(config, plugin.name))
    else:
        checks.append(_no_transfer(version))
    checks.append(_nerdctl(plugin.name))
    return checks


def major(version: str) -> int:
    """The first number of a version like "v2.1.9" or "1.6.20~ds1"; 0 if there is none."""
    number = version.lstrip("v").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _kubernetes(config: ContainerdConfig, name: str) -> Check:
    table = config.cri_table
    wrong = []
    if config.cri.snapshotter != name:
        wrong.append(f'snapshotter = "{name}"')
    if config.cri.disable_snapshot_annotations:
        wrong.append("disable_snapshot_annotations = false")
    if not wrong:
        return Check("Kubernetes (CRI)", True, f"pulls through {name} and passes on what lazy pulling needs")
    return Check(
        "Kubernetes (CRI)",
        None,
        f"kubelet's images are not pulled lazily: {' and '.join(wrong)} missing",
        f"for Kubernetes, set {' and '.join(wrong)} in [{table}] of {config.path} and restart containerd",
    )


def _transfer(config: ContainerdConfig, name: str) -> Check:
    label = "ctr images pull"
    wrong = []
    plugin = next(plugin for plugin in config.proxy_plugins if plugin.name == name)
    if plugin.exports.get("enable_remote_snapshot_annotations") != "true":
        wrong.append(f'[proxy_plugins.{name}.exports] enable_remote_snapshot_annotations = "true"')
    if name not in config.unpack_snapshotters:
        wrong.append(
            '[[plugins."io.containerd.transfer.v1.local".unpack_config]] platform = "linux", '
            f'snapshotter = "{name}" (and one for overlayfs, because this replaces the default)'
        )
    if not wrong:
        return Check(label, True, f"--snapshotter {name} pulls lazily")
    return Check(
        label,
        None,
        f"--snapshotter {name} does not pull lazily: containerd's transfer service is not set up for it",
        f"add {' and '.join(wrong)} to {config.path}, or use `layergate pull`",
    )


def _no_transfer(version: str) -> Check:
    return Check(
        "ctr images pull",
        None,
        f"containerd {version} downloads everything before it asks a snapshotter",
        "use `layergate pull` where you would use `ctr images pull`",
    )


def _image_usage(config: ContainerdConfig, name: str) -> Check:
    plugin = next(plugin for plugin in config.proxy_plugins if plugin.name == name)
    root = plugin.exports.get("root")
    if root:
        return Check("image disk usage", True, f"kubelet measures {root}")
    return Check(
        "image disk usage",
        None,
        "kubelet does not know where lazy layers lie, and does not count them",
        f"for Kubernetes, set root to the data directory in [proxy_plugins.{name}.exports]",
    )


def _nerdctl(name: str) -> Check:
    if name == "stargz":
        return Check("nerdctl", True, "passes on what lazy pulling needs to a plugin of this name")
    return Check(
        "nerdctl",
        None,
        f"does not pull lazily through a plugin named {name!r}: it knows the name stargz alone",
        "for nerdctl, name the plugin stargz, or use `layergate pull` before `nerdctl run`",
    )


def _kernel() -> Check:
    return Check("kernel", True, f"{platform.system()} {platform.release()} {platform.machine()}")


def _mode(found: Probe) -> Check:
    detail = _MODES[found.mode]
    if found.mode is Mode.GATE:
        return Check(MODE, True, detail)
    remedy = "; ".join(check.remedy for check in found.checks if check.ok is False)
    # Lazy pulling works with the stub too, only not at native speed.
    return Check(MODE, found.mode is Mode.STUB, f"{detail}, because {found.reason}", remedy)


def _free_space(path: str, free_bytes: Callable[[str], int]) -> Check:
    free = free_bytes(path)
    detail = f"{free / _GIB:.1f} GiB free on the file system of {path}"
    if free >= 10 * _GIB:
        return Check(FREE_SPACE, True, detail)
    remedy = "free some space or put the data directory on a larger file system"
    return Check(FREE_SPACE, None if free >= _GIB else False, detail, remedy)


def _containerd(containerd: Containerd) -> Check:
    if containerd.version is None:
        return Check(CONTAINERD, None, containerd.detail, "install containerd 1.6 or later and start it")
    if (major(containerd.version), _minor(containerd.version)) < (1, 6):
        return Check(CONTAINERD, False, f"version {containerd.version}", "upgrade to containerd 1.6 or later")
    return Check(CONTAINERD, True, f"version {containerd.version}, {containerd.detail}")


def _minor(version: str) -> int:
    number = version.partition(".")[2].partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _namespace(containerd: Containerd) -> Check:
    name = "mount namespace"
    if containerd.same_namespace is None:
        return Check(name, None, "containerd is not running, so it cannot be compared", "start containerd")
    if containerd.same_namespace:
        return Check(name, True, "containerd sees the mounts that are made here")
    return Check(
        name,
        None,
        "containerd is in another mount namespace than this command",
        "run layergate's services in containerd's mount namespace: no PrivateMounts=, PrivateTmp= or "
        "Protect*= in either unit",
    )


def _no_config(path: str, address: str) -> Check:
    return Check(PLUGIN, False, f"there is no {path}", _plugin_remedy(path, address))


def _plugin_remedy(path: str, address: str) -> str:
    plugin = f'[proxy_plugins.layergate] type = "snapshot", address = "{address}"'
    return f"add {plugin} to {path} and restart containerd"


def _existing(path: str) -> str:
    """`path`, or the nearest directory above it that exists."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
