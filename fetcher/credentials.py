"""Registry credentials, from docker's config.json and its credential helpers.

The file is read again whenever it changes, so a `docker login` takes effect at
once. Files are read and helpers run off the event loop. No secret is ever part
of a repr, a log line or an exception.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from dataclasses import dataclass, field
from typing import Final

import msgspec
from anyio import to_thread

from fetcher.logs import get_logger
from fetcher.reference import DOCKER_IO

log = get_logger("layergate.fetcher")

DOCKER_IO_KEY: Final = "https://index.docker.io/v1/"
"""The name under which docker keeps docker.io's credentials."""

_DOCKER_IO_HOSTS: Final = frozenset({DOCKER_IO, "index.docker.io", "registry-1.docker.io"})
_HELPER_SECONDS: Final = 20.0
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_FOUND: Final = b"credentials not found"
_IDENTITY_USER: Final = "<token>"
"""The user name with which a helper says that the secret is an identity token."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with a password, or with an identity token for the OAuth2 flow."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class _Auth(msgspec.Struct, frozen=True):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None


class _Config(
    msgspec.Struct, frozen=True, rename={"creds_store": "credsStore", "cred_helpers": "credHelpers"}
):
    auths: dict[str, _Auth] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str | None = None


_CONFIGS: Final = msgspec.json.Decoder(_Config)


class _HelperAnswer(msgspec.Struct, frozen=True, rename="pascal"):
    username: str = ""
    secret: str = ""


_HELPER_ANSWERS: Final = msgspec.json.Decoder(_HelperAnswer)


class CredentialStore:
    """Looks credentials up by registry host; safe to use from many tasks."""

    def __init__(self, docker_config: str | None = None) -> None:
        self.path = docker_config_path(docker_config)
        self._stamp: tuple[int, int, int] | None = None
        self._config = _Config()

    async def lookup(self, host: str) -> Credential | None:
        """What the file has for `host` (HOST or HOST:PORT), None if nothing.

        A file or a helper that does not work is logged, and gives nothing.
        """
        config = await to_thread.run_sync(self._read)
        helper = next(
            (name for key, name in (config.cred_helpers or {}).items() if _same_host(key, host)), None
        )
        helper = helper or config.creds_store
        if helper:
            credential = await _ask_helper(helper, DOCKER_IO_KEY if host == DOCKER_IO else host)
            if credential is not None:
                return credential
        auths = config.auths or {}
        for key in sorted((key for key in auths if _same_host(key, host)), key=lambda key: key != host):
            credential = _decoded(auths[key])
            if credential is not None:
                return credential
        return None

    def _read(self) -> _Config:
        try:
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                if stamp != self._stamp:
                    self._config = _CONFIGS.decode(file.read())
                    self._stamp = stamp
        except FileNotFoundError:
            self._config, self._stamp = _Config(), None
        except OSError as error:
            log.warning("credentials_unreadable", path=self.path, error=error.strerror)
            self._config, self._stamp = _Config(), None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # The error gives a place or a key, never a value.
            log.warning("credentials_malformed", path=self.path, error=str(error))
            self._config, self._stamp = _Config(), stamp
        return self._config


def docker_config_path(docker_config: str | None) -> str:
    """The file to read: `docker_config`, $DOCKER_CONFIG/config.json, or ~/.docker/config.json."""
    if docker_config is not None:
        return docker_config
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return os.path.join(directory, "config.json")


def _same_host(key: str, host: str) -> bool:
    """Whether a key of `auths` or `credHelpers` ("https://HOST/v1/", "HOST") means `host`."""
    name = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return name == host or (host == DOCKER_IO and name in _DOCKER_IO_HOSTS)


def _decoded(auth: _Auth) -> Credential | None:
    username, password = auth.username or "", auth.password or ""
    if auth.auth:
        try:
            text = base64.b64decode(auth.auth, validate=True).decode()
        except ValueError:  # what it raises for letters beyond ASCII is no binascii.Error
            log.warning("credentials_malformed", error="an `auth` is not base64 of UTF-8")
            return None
        username, _, password = text.partition(":")
        password = password.rstrip("\0")
    if auth.identitytoken:
        return Credential(username, identity_token=auth.identitytoken)
    return Credential(username, password) if username else None


async def _ask_helper(name: str, server: str) -> Credential | None:
    """Run `docker-credential-NAME get`; its output holds secrets, so none of it is logged."""
    if not _HELPER_NAME.fullmatch(name):
        log.warning("credential_helper_refused", helper=name, error="the name is not a program's")
        return None
    program = f"docker-credential-{name}"
    try:
        result = await to_thread.run_sync(_run_helper, program, server)
    except subprocess.TimeoutExpired:
        log.warning("credential_helper_failed", helper=program, server=server, error="no answer")
        return None
    except OSError as error:
        log.warning("credential_helper_failed", helper=program, server=server, error=error.strerror)
        return None
    if result.returncode != 0:
        if _NOT_FOUND not in result.stdout:
            log.warning("credential_helper_failed", helper=program, server=server, status=result.returncode)
        return None
    try:
        answer = _HELPER_ANSWERS.decode(result.stdout)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        log.warning("credential_helper_failed", helper=program, server=server, error="its answer is no JSON")
        return None
    if answer.username == _IDENTITY_USER:
        return Credential(answer.username, identity_token=answer.secret)
    return Credential(answer.username, answer.secret) if answer.secret else None


def _run_helper(program: str, server: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, "get"],
        input=server.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_HELPER_SECONDS,
        check=False,
    )
