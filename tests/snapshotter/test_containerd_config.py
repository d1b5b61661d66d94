"""Reading containerd's config.toml, whatever is in it."""

from __future__ import annotations

import os
import tomllib

import pytest

from snapshotter.containerd_config import ContainerdConfigError, ProxyPlugin, load_config, parse_config


def test_an_empty_file_has_containerds_defaults() -> None:
    config = parse_config("c.toml", {})
    assert config.proxy_plugins == ()
    assert config.cri.snapshotter == "overlayfs"
    assert config.cri.disable_snapshot_annotations
    assert config.unpack_snapshotters == ()


def test_a_proxy_plugin_with_its_exports() -> None:
    text = '[proxy_plugins.x]\ntype="snapshot"\naddress="/a"\n[proxy_plugins.x.exports]\nroot="/r"\nodd=1\n'
    config = parse_config("c.toml", tomllib.loads(text))
    assert config.proxy_plugins == (ProxyPlugin("x", "snapshot", "/a", {"root": "/r"}),)


@pytest.mark.parametrize(
    "text",
    [
        "proxy_plugins = 1",
        "[proxy_plugins]\nx = 1",
        "plugins = 1",
        'version = "2"\n[plugins]\n"io.containerd.grpc.v1.cri" = []',
        '[plugins."io.containerd.transfer.v1.local"]\nunpack_config = 1',
        '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = 1',
    ],
)
def test_another_shape_than_containerds_counts_as_absent(text: str) -> None:
    assert parse_config("c.toml", tomllib.loads(text)).cri == parse_config("c.toml", {}).cri


def test_imports_are_merged_over_the_file_and_may_import_each_other(tmp_path: os.PathLike[str]) -> None:
    files = {
        "config.toml": 'imports = ["more.toml"]\n[proxy_plugins.x]\ntype = "snapshot"\naddress = "/old"\n',
        "more.toml": f'imports = ["{tmp_path}/config.toml"]\n[proxy_plugins.x]\naddress = "/new"\n',
    }
    for name, text in files.items():
        with open(os.path.join(tmp_path, name), "w") as file:
            file.write(text)
    (plugin,) = load_config(os.path.join(tmp_path, "config.toml")).proxy_plugins
    assert (plugin.type, plugin.address) == ("snapshot", "/new")


@pytest.mark.parametrize("content", [b"not TOML", b"a = '\xff'"])
def test_what_is_not_toml_is_refused_with_its_path(tmp_path: os.PathLike[str], content: bytes) -> None:
    path = os.path.join(tmp_path, "config.toml")
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(ContainerdConfigError, match=path):
        load_config(path)


def test_a_missing_file_is_told_apart(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(FileNotFoundError):
        load_config(os.path.join(tmp_path, "config.toml"))
