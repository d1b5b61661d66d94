"""The configuration file: typed, and strict about what it does not know.

TOML; every key is optional. An unknown key, a value of the wrong type or out of
range is an error that names the file and the key.
"""

from __future__ import annotations

import os
import tomllib
from typing import Annotated, Literal

import msgspec

from fetcher.settings import RegistryHost, RegistrySettings
from mounter.settings import MounterSettings
from snapshotter.defaults import DEFAULT_CONFIG
from snapshotter.errors import ConfigError


class StreamConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[stream]`: the background fetcher."""

    enabled: bool = True
    parallel_layers: Annotated[int, msgspec.Meta(ge=1, le=64)] = os.cpu_count() or 2
    bytes_per_second: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of all streams together, compressed bytes; 0 means no limit."""


class LazyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[lazy]`: which layers are pulled lazily."""

    enabled: bool = True
    mode: Literal["auto", "stub"] = "auto"
    """stub: the fallback for hosts without data-only lower layers, wherever it works. Takes a restart."""
    allow_unverified_toc: bool = False
    """Take layers whose table of contents no annotation vouches for."""
    open_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """A layer that is not open by then is unpacked the ordinary way."""
    mount_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """How long a client may take from our answer to its mount, before what it names may be released."""


class CredentialsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[credentials]`: where registry credentials come from."""

    docker_config: str | None = None
    """A docker config.json; by default $DOCKER_CONFIG/config.json, then ~/.docker/config.json."""


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `registry` is keyed by HOST or HOST:PORT."""

    stream: StreamConfig = StreamConfig()
    lazy: LazyConfig = LazyConfig()
    credentials: CredentialsConfig = CredentialsConfig()
    registry: dict[str, RegistryHost] = {}
    mounter: MounterSettings = MounterSettings()
    log: LogConfig = LogConfig()

    def registry_settings(self) -> RegistrySettings:
        """What `fetcher` needs of it."""
        return RegistrySettings(hosts=self.registry, docker_config=self.credentials.docker_config)

    def mounter_settings(self) -> MounterSettings:
        """What `mounter` needs of it."""
        return msgspec.structs.replace(self.mounter, registry=self.registry_settings())


def load_config(path: str | None) -> Config:
    """Read the file at `path`; without one, DEFAULT_CONFIG if it exists, else the defaults.

    Raises ConfigError.
    """
    if path is None:
        if not os.path.exists(DEFAULT_CONFIG):
            return Config()
        path = DEFAULT_CONFIG
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
        if "registry" in values.get("mounter", {}):
            raise ConfigError(f"{path}: registries are configured in [registry.HOST], not in [mounter]")
        return msgspec.convert(values, Config)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
