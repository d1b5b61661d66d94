"""The configuration file: typed, and strict about what it does not know.

TOML; every key is optional. An unknown key, a value of the wrong type or out of
range is an error that names the file and the key.
"""

from __future__ import annotations

import os
import tomllib
from typing import Annotated, Final, Literal

import msgspec

from fetcher.settings import RegistryHost, RegistrySettings
from fetcher.typed import Converter
from mounter.settings import MounterSettings
from snapshotter.cache.quantities import parse_duration, parse_share, parse_size
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


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cache]`: what serve keeps the cache to by itself. Layers in use are never removed."""

    max_size: str | None = None
    """Of all layers together, like "20GB"; by default there is no limit."""
    min_free: str | None = None
    """Of the file system, like "5GB" or "10%"; by default 1 GB, or 5 % where that is less."""
    keep_unused: str = "24h"
    """How long a layer stays that nothing uses; "forever" leaves it to the other limits."""

    def __post_init__(self) -> None:
        """Raises ValueError for what is no quantity."""
        for name in ("max_size_bytes", "min_free_bytes", "min_free_share", "keep_unused_seconds"):
            getattr(self, name)

    @property
    def max_size_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return None if self.max_size is None else parse_size(self.max_size)

    @property
    def min_free_bytes(self) -> int | None:
        """`min_free` in bytes; None if it is not set, or a share."""
        return None if self.min_free is None or self.min_free.endswith("%") else parse_size(self.min_free)

    @property
    def min_free_share(self) -> float | None:
        """`min_free` as a share of the file system's size; None if it is not set, or bytes."""
        if self.min_free is None or not self.min_free.endswith("%"):
            return None
        return parse_share(self.min_free)

    @property
    def keep_unused_seconds(self) -> float | None:
        """`keep_unused` in seconds; None for ever."""
        return None if self.keep_unused == "forever" else parse_duration(self.keep_unused)


class RecordConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[record]`: keeping what containers open and wait for, for `layergate optimize --from-image`."""

    enabled: bool = False
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    """For how long the opens of an image's first container are recorded."""


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
    cache: CacheConfig = CacheConfig()
    record: RecordConfig = RecordConfig()
    credentials: CredentialsConfig = CredentialsConfig()
    registry: dict[str, RegistryHost] = {}
    mounter: MounterSettings = MounterSettings()
    log: LogConfig = LogConfig()

    def registry_settings(self) -> RegistrySettings:
        """What `fetcher` needs of it."""
        return RegistrySettings(hosts=self.registry, docker_config=self.credentials.docker_config)

    def mounter_settings(self) -> MounterSettings:
        """What `mounter` needs of it."""
        return msgspec.structs.replace(
            self.mounter, registry=self.registry_settings(), record=self.record.enabled
        )


_CONFIGS: Final = Converter(Config)


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
        mounter = values.get("mounter")
        if isinstance(mounter, dict) and "registry" in mounter:
            raise ConfigError(f"{path}: registries are configured in [registry.HOST], not in [mounter]")
        if isinstance(mounter, dict) and "record" in mounter:
            raise ConfigError(f"{path}: records are configured in [record], not in [mounter]")
        return _CONFIGS.convert(values)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # also numbers and tables that Python sets a limit to
        raise ConfigError(f"{path} is not TOML: {error}") from error
