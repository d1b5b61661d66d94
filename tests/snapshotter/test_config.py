"""The configuration file: typed, and strict about what it does not know."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import msgspec
import pytest

from snapshotter.config import Config, load_config
from snapshotter.errors import ConfigError

REPOSITORY: Final = Path(__file__).parents[2]


def _load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(str(path))


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == Config()


def test_every_table(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        """
        [stream]
        enabled = false
        parallel_layers = 3
        bytes_per_second = 1000000
        [lazy]
        allow_unverified_toc = true
        [credentials]
        docker_config = "/run/secrets/config.json"
        [registry."registry.local:5000"]
        plain_http = true
        [record]
        enabled = true
        seconds = 5.5
        [mounter]
        wait_seconds = 3.0
        [log]
        level = "debug"
        """,
    )
    assert (config.stream.enabled, config.stream.parallel_layers) == (False, 3)
    assert config.lazy.allow_unverified_toc
    assert (config.record.enabled, config.record.seconds) == (True, 5.5)
    settings = config.mounter_settings()
    assert settings.record
    assert settings.wait_seconds == 3.0
    assert settings.registry.docker_config == "/run/secrets/config.json"
    assert settings.registry.endpoint("registry.local:5000") == "http://registry.local:5000"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[strem]\nenabled = true", "strem"),
        ("[stream]\nenable = true", "enable"),
        ('[stream]\nenabled = "yes"', "stream.enabled"),
        ("[stream]\nparallel_layers = 0", "stream.parallel_layers"),
        ("[stream]\nbytes_per_second = -1", "stream.bytes_per_second"),
        ("[record]\nseconds = 0", "record.seconds"),
        ("[record]\nmax_size = 1", "max_size"),
        ("[mounter]\nrecord = true", "configured in [record]"),
        ('[registry."a:1"]\nplain = true', "plain"),
        ('[log]\nlevel = "loud"', "log.level"),
        ("[mounter.registry]\n", "[registry.HOST]"),
        ("stream", "not TOML"),
    ],
)
def test_an_error_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert named in str(caught.value)
    assert str(tmp_path / "config.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(str(tmp_path / "absent.toml"))


def test_the_documentation_has_every_key(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/configuration.md").read_text()
    block = text.partition("```toml\n")[2].partition("```")[0]
    _load(tmp_path, block)
    documented = tomllib.loads(block)
    for section in msgspec.structs.fields(Config):
        if section.name != "registry":
            keys = {field.name for field in msgspec.structs.fields(section.type)}
            # What serve passes on to the mounter from other sections.
            passed_on = {"registry", "record"} if section.name == "mounter" else set()
            assert set(documented[section.name]) == keys - passed_on, section.name
