"""Settings of the registry side, as the configuration file gives them. Pure; no I/O."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import msgspec

from fetcher.reference import DOCKER_IO


class RegistryHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to talk to one registry, or to the storage that one redirects to."""

    plain_http: bool | None = None
    """HTTP without TLS; unset, that is for localhost, 127.0.0.0/8 and [::1] alone."""
    ca_file: str | None = None
    """PEM certificates to trust for this host, beside the system's."""
    skip_verify: bool = False
    """Take any certificate. Digests are verified all the same; credentials are what this exposes."""


class RegistrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a RegistryClient needs to know. `hosts` is keyed by HOST or HOST:PORT."""

    hosts: dict[str, RegistryHost] = {}
    docker_config: str | None = None
    """A docker config.json; by default $DOCKER_CONFIG/config.json, then ~/.docker/config.json."""
    connect_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    read_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """How long a registry may be silent within an answer."""
    retry_limit: Annotated[int, msgspec.Meta(ge=0)] = 6
    """Tries after one that brought nothing."""
    connection_limit: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Connections of one process, to all hosts that share their TLS settings."""

    def host(self, host: str) -> RegistryHost:
        """What is set for `host`, HOST or HOST:PORT."""
        return self.hosts.get(host, _DEFAULT)

    def endpoint(self, host: str) -> str:
        """Where the registry `host` answers: "https://HOST[:PORT]"."""
        plain = self.host(host).plain_http
        if plain is None:
            plain = is_loopback(host)
        return f"{'http' if plain else 'https'}://{'registry-1.docker.io' if host == DOCKER_IO else host}"


_DEFAULT = RegistryHost()


def is_loopback(host: str) -> bool:
    """Whether HOST or HOST:PORT is this machine by its name or number alone."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
