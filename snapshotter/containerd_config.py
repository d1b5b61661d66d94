"""containerd's config.toml, as far as lazy pulling depends on it. Reads files, changes nothing."""

from __future__ import annotations

import glob
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_CRI_2: Final = ("io.containerd.grpc.v1.cri", "containerd")
_CRI_3: Final = ("io.containerd.cri.v1.images",)
_TRANSFER: Final = "io.containerd.transfer.v1.local"


class ContainerdConfigError(Exception):
    """A configuration file that cannot be read or is not TOML; the message names it."""


@dataclass(frozen=True, slots=True)
class ProxyPlugin:
    """One [proxy_plugins.NAME]."""

    name: str
    type: str
    address: str
    exports: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Cri:
    """The CRI plugin's settings, with containerd's defaults where nothing is set."""

    snapshotter: str
    disable_snapshot_annotations: bool


@dataclass(frozen=True, slots=True)
class ContainerdConfig:
    """What matters of config.toml with its imports. `cri_table` is where this version keeps `cri`."""

    path: str
    version: int
    proxy_plugins: tuple[ProxyPlugin, ...]
    cri: Cri
    cri_table: str
    unpack_snapshotters: tuple[str, ...]


def load_config(path: str) -> ContainerdConfig:
    """Read `path` and what it imports.

    Raises FileNotFoundError if `path` itself is not there, else ContainerdConfigError.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return parse_config(path, _with_imports(path, set()))


def parse_config(path: str, tables: Mapping[str, object]) -> ContainerdConfig:
    """The settings in decoded TOML; what has another shape than containerd's counts as absent. Pure."""
    version = tables.get("version")
    version = version if isinstance(version, int) else 1
    plugins = _table(tables, "plugins")
    keys = _CRI_3 if version >= 3 else _CRI_2
    cri: Mapping[str, object] = plugins
    for key in keys:
        cri = _table(cri, key)
    table = ".".join(["plugins", *(f'"{key}"' if "." in key else key for key in keys)])
    disable = cri.get("disable_snapshot_annotations", True)
    return ContainerdConfig(
        path=path,
        version=version,
        proxy_plugins=tuple(
            ProxyPlugin(
                name=name,
                type=_text(plugin, "type"),
                address=_text(plugin, "address"),
                exports={
                    key: value for key, value in _table(plugin, "exports").items() if isinstance(value, str)
                },
            )
            for name, plugin in _table(tables, "proxy_plugins").items()
            if isinstance(plugin, dict)
        ),
        cri=Cri(
            snapshotter=_text(cri, "snapshotter") or "overlayfs",
            disable_snapshot_annotations=disable if isinstance(disable, bool) else True,
        ),
        cri_table=table,
        unpack_snapshotters=_unpack_snapshotters(_table(plugins, _TRANSFER)),
    )


def _unpack_snapshotters(transfer: Mapping[str, object]) -> tuple[str, ...]:
    entries = transfer.get("unpack_config")
    if not isinstance(entries, list):
        return ()
    return tuple(_text(entry, "snapshotter") for entry in entries if isinstance(entry, dict))


def _table(tables: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = tables.get(key)
    return value if isinstance(value, dict) else {}


def _text(table: Mapping[str, object], key: str) -> str:
    value = table.get(key)
    return value if isinstance(value, str) else ""


def _with_imports(path: str, seen: set[str]) -> dict[str, object]:
    """A file's tables with those of its imports merged over them, as containerd does; each file once."""
    seen.add(os.path.realpath(path))
    try:
        with open(path, "rb") as file:
            tables: dict[str, object] = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ContainerdConfigError(f"{path} cannot be read: {error}") from error
    imports = tables.get("imports")
    for pattern in imports if isinstance(imports, list) else []:
        for imported in sorted(glob.glob(os.path.join(os.path.dirname(path), str(pattern)))):
            if os.path.realpath(imported) not in seen:
                _merge(tables, _with_imports(imported, seen))
    return tables


def _merge(into: dict[str, object], other: Mapping[str, object]) -> None:
    for key, value in other.items():
        present = into.get(key)
        if isinstance(present, dict) and isinstance(value, dict):
            _merge(present, value)
        else:
            into[key] = value
