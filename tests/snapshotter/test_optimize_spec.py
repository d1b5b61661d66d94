"""From an image's config to the runtime spec of its sandbox. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from fetcher.errors import FormatError
from snapshotter.optimize.spec import (
    ImageConfig,
    Workload,
    arguments,
    environment,
    parse_config,
    resolve_user,
    runtime_spec,
)

PASSWD: Final = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "broken\n"
    "web:x:1000:1001::/srv:/bin/sh\n"
    "7:x:70:71:a name like a number:/:/bin/sh\n"
)
GROUP: Final = "root:x:0:\nweb:x:1001:\nlog:x:4:web,root\nmail:x:8:other,web\n7:x:77:\n"


def image(**config: object) -> ImageConfig:
    return parse_config(json.dumps({"config": config, "rootfs": {"diff_ids": []}}).encode())


def spec(of: ImageConfig, workload: Workload = Workload()) -> dict[str, Any]:  # noqa: B008 - it is frozen
    """The spec as JSON readers see it, whatever its types."""
    made = runtime_spec(of, workload, root="/r", passwd=PASSWD, group=GROUP)
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


@pytest.mark.parametrize(
    ("entrypoint", "command", "workload", "line"),
    [
        (["e", "1"], ["c"], Workload(), ["e", "1", "c"]),
        (None, ["c", "2"], Workload(), ["c", "2"]),
        (["e"], None, Workload(), ["e"]),
        (["e"], ["c"], Workload(command=("d",)), ["e", "d"]),
        (["e"], ["c"], Workload(entrypoint=("f", "3")), ["f", "3"]),
        (["e"], ["c"], Workload(entrypoint=("f",), command=("d",)), ["f", "d"]),
        (None, None, Workload(command=("d",)), ["d"]),
    ],
)
def test_the_command_line(
    entrypoint: list[str] | None, command: list[str] | None, workload: Workload, line: list[str]
) -> None:
    of = image(Entrypoint=entrypoint, Cmd=command)
    assert arguments(of, workload) == line
    assert spec(of, workload)["process"]["args"] == line


@pytest.mark.parametrize("of", [image(), image(Entrypoint=[], Cmd=[]), parse_config(b"{}")])
def test_an_image_without_a_command_says_what_to_do(of: ImageConfig) -> None:
    with pytest.raises(FormatError, match="name one behind --"):
        arguments(of, Workload())


def test_the_workload_replaces_variables_in_their_place() -> None:
    of = image(Cmd=["c"], Env=["A=1", "PATH=/bin", "B=2"])
    found = spec(of, Workload(environment=("A=3", "C=")))["process"]["env"]
    assert found == ["PATH=/bin", "A=3", "B=2", "C="]
    assert environment(["A=1", "A", "A=2=3"]) == ["A=2=3"]


def test_an_image_without_variables_has_a_path() -> None:
    assert spec(image(Cmd=["c"]))["process"]["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


@pytest.mark.parametrize(
    ("directory", "expected"), [(None, "/"), ("", "/"), ("/srv", "/srv"), ("relative", "/relative")]
)
def test_the_working_directory_is_absolute(directory: str | None, expected: str) -> None:
    assert spec(image(Cmd=["c"], WorkingDir=directory))["process"]["cwd"] == expected


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [4])),
        ("root", (0, 0, [4])),
        ("0", (0, 0, [4])),
        ("web", (1000, 1001, [4, 8])),
        ("1000", (1000, 1001, [4, 8])),
        ("web:mail", (1000, 8, [])),
        ("web:5", (1000, 5, [])),
        ("12:34", (12, 34, [])),
        ("12", (12, 0, [])),
        (":log", (0, 4, [])),
        # A name counts before a number does.
        ("7:7", (70, 77, [])),
    ],
)
def test_users(user: str, expected: tuple[int, int, list[int]]) -> None:
    assert resolve_user(user, PASSWD, GROUP) == expected


@pytest.mark.parametrize("user", ["nobody", "web:nobody", "-1", "4294967295", "1²", "broken"])
def test_users_that_are_not_there(user: str) -> None:
    with pytest.raises(FormatError, match="the image has no"):
        resolve_user(user, PASSWD, GROUP)


def test_root_has_few_capabilities_and_others_none_at_once() -> None:
    root = spec(image(Cmd=["c"]))["process"]
    assert "CAP_CHOWN" in root["capabilities"]["effective"]
    assert not {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE"} & set(root["capabilities"]["bounding"])
    assert root["noNewPrivileges"]
    other = spec(image(Cmd=["c"], User="web"))["process"]
    assert other["user"] == {"uid": 1000, "gid": 1001, "additionalGids": [4, 8]}
    assert other["capabilities"]["effective"] == []


def test_the_network_is_the_sandbox_s_own_unless_the_host_s_is_wanted() -> None:
    alone = spec(image(Cmd=["c"]))
    assert {"type": "network"} in alone["linux"]["namespaces"]
    shared = spec(image(Cmd=["c"]), Workload(host_network=True))
    assert {"type": "network"} not in shared["linux"]["namespaces"]
    destinations = {mount["destination"]: mount for mount in shared["mounts"]}
    assert "ro" in destinations["/etc/resolv.conf"]["options"]
    assert "/etc/resolv.conf" not in {mount["destination"] for mount in alone["mounts"]}
    for made in (alone, shared):
        assert {"pid", "ipc", "uts", "mount"} <= {one["type"] for one in made["linux"]["namespaces"]}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"config": {"Cmd": "sh -c"}}', b'{"config": 1}'])
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="not an image's config"):
        parse_config(data)
