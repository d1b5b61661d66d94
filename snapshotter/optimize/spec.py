"""The runtime spec (OCI runtime-spec 1.0) of a sandbox, made from an image's config. Pure; no I/O.

The sandbox is what containerd gives a container of the image by default: namespaces of its own, the usual
capabilities, /proc, /dev and /sys; but new privileges cannot be gained, no seccomp filter is set, and its
network has only a loopback interface unless the host's is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from fetcher.errors import FormatError

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES: Final = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_TEMPORARY: Final = ["nosuid", "noexec", "nodev"]
_NOBODY_LIMIT: Final = 0xFFFFFFFE


class _Config(msgspec.Struct, frozen=True):
    user: str | None = msgspec.field(default=None, name="User")
    environment: list[str] | None = msgspec.field(default=None, name="Env")
    entrypoint: list[str] | None = msgspec.field(default=None, name="Entrypoint")
    command: list[str] | None = msgspec.field(default=None, name="Cmd")
    directory: str | None = msgspec.field(default=None, name="WorkingDir")


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class ImageConfig(msgspec.Struct, frozen=True):
    """What of an image's config matters here (OCI image-spec, "config")."""

    config: _Config | None = None
    rootfs: _RootFs = _RootFs()


_CONFIGS: Final = msgspec.json.Decoder(ImageConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to run instead of, or beside, what the image says.

    `entrypoint` replaces the image's, and its command too; `command` replaces its command. `environment`
    is NAME=VALUE each. `host_network`: the host's network instead of a loopback interface alone.
    """

    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    host_network: bool = False


def parse_config(data: bytes) -> ImageConfig:
    """Raises FormatError."""
    try:
        return _CONFIGS.decode(data)
    except msgspec.DecodeError as error:
        raise FormatError(f"not an image's config: {error}") from error


def arguments(image: ImageConfig, workload: Workload) -> list[str]:
    """The command line. Raises FormatError if neither the image nor the workload has one."""
    config = image.config or _Config()
    if workload.entrypoint is not None:
        found = [*workload.entrypoint, *workload.command]
    else:
        found = [*(config.entrypoint or ()), *(workload.command or config.command or ())]
    if not found:
        raise FormatError("the image has neither an entrypoint nor a command: name one behind --")
    return found


def runtime_spec(
    image: ImageConfig, workload: Workload, *, root: str, passwd: str, group: str
) -> dict[str, object]:
    """The spec, ready to be written as config.json.

    `root` is the root file system's path, `passwd` and `group` are the texts of its account files. Raises
    FormatError if there is nothing to run, or its user is unknown.
    """
    config = image.config or _Config()
    uid, gid, further = resolve_user(config.user or "", passwd, group)
    capabilities = list(_CAPABILITIES)
    namespaces = ["pid", "ipc", "uts", "mount", *(() if workload.host_network else ("network",))]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid, "additionalGids": further},
            "args": arguments(image, workload),
            "env": environment([_PATH, *(config.environment or ()), *workload.environment]),
            "cwd": "/" + (config.directory or "").lstrip("/"),
            # A user but root has what he may gain through a set-uid program, and nothing at once.
            "capabilities": {
                kind: capabilities if kind == "bounding" or uid == 0 else []
                for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": True,
        },
        "root": {"path": root},
        "hostname": "layergate",
        "mounts": _mounts(host_network=workload.host_network),
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        },
    }


def environment(words: Sequence[str]) -> list[str]:
    """NAME=VALUE words with the last of each name, in the order of the first."""
    return list({word.partition("=")[0]: word for word in words}.values())


def resolve_user(user: str, passwd: str, group: str) -> tuple[int, int, list[int]]:
    """Uid, gid and further gids of `USER[:GROUP]`, names or numbers; "" is root. Raises FormatError."""
    name, _, group_name = user.partition(":")
    accounts = [line.split(":") for line in passwd.splitlines() if line.count(":") >= 6]
    groups = [line.split(":") for line in group.splitlines() if line.count(":") >= 3]
    account = next((one for one in accounts if (name or "0") in (one[0], one[2])), None)
    if account is not None:
        uid, gid = _number(account[2]), _number(account[3])
    else:
        uid, gid = _number(name or "0"), 0
    if uid is None or gid is None:
        raise FormatError(f"the image has no user {name!r}")
    if group_name:
        named = next((one for one in groups if group_name in (one[0], one[2])), None)
        chosen = _number(group_name if named is None else named[2])
        if chosen is None:
            raise FormatError(f"the image has no group {group_name!r}")
        return uid, chosen, []
    login = account[0] if account is not None else ""
    further = [_number(one[2]) for one in groups if login and login in one[3].split(",")]
    return uid, gid, [one for one in further if one is not None]


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) <= _NOBODY_LIMIT else None


def _mounts(*, host_network: bool) -> list[dict[str, object]]:
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": list(_TEMPORARY)},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",  # noqa: S108 - the sandbox's own
            "type": "tmpfs",
            "source": "shm",
            "options": [*_TEMPORARY, "mode=1777", "size=65536k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": list(_TEMPORARY)},
    ]
    if host_network:
        # sysfs shows the network namespace's devices, and mounting it anew takes one of our own.
        mounts.append(
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": [*_TEMPORARY, "rbind", "ro"]}
        )
        mounts += [
            {"destination": path, "type": "bind", "source": path, "options": ["bind", "ro"]}
            for path in ("/etc/resolv.conf", "/etc/hosts")
        ]
    else:
        mounts.append(
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_TEMPORARY, "ro"]}
        )
    return mounts
