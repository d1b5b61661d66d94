from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from fetcher.credentials import DOCKER_IO_KEY, Credential, CredentialStore, docker_config_path
from fetcher.logs import captured_logs

pytestmark = pytest.mark.anyio

SECRET = "opensesame"


def auth(username: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def write_text(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


def write(path: Path, config: object) -> CredentialStore:
    path.write_text(json.dumps(config))
    return CredentialStore(str(path))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper `test`; tests write its body."""
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


async def test_credentials_are_found_by_host_and_port(config: Path) -> None:
    store = write(config, {"auths": {"quay.io": auth("a"), "quay.io:5000": auth("b")}})
    assert await store.lookup("quay.io") == Credential("a", SECRET)
    assert await store.lookup("quay.io:5000") == Credential("b", SECRET)
    assert await store.lookup("quay.io:5001") is None


@pytest.mark.parametrize("key", ["https://quay.io", "https://quay.io/v1/", "http://quay.io/v2/", "quay.io/"])
async def test_keys_may_be_urls(config: Path, key: str) -> None:
    assert await write(config, {"auths": {key: auth("a")}}).lookup("quay.io") == Credential("a", SECRET)


@pytest.mark.parametrize("key", [DOCKER_IO_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"])
async def test_docker_hub_has_a_key_of_its_own(config: Path, key: str) -> None:
    assert await write(config, {"auths": {key: auth("a")}}).lookup("docker.io") == Credential("a", SECRET)


async def test_user_name_password_and_identity_token_may_be_given_plainly(config: Path) -> None:
    store = write(
        config,
        {
            "auths": {
                "plain.io": {"username": "a", "password": SECRET},
                "token.io": {"username": "b", "identitytoken": SECRET},
                "empty.io": {},
                "colon.io": auth("c", "pass:word"),
            }
        },
    )
    assert await store.lookup("plain.io") == Credential("a", SECRET)
    assert await store.lookup("token.io") == Credential("b", identity_token=SECRET)
    assert await store.lookup("empty.io") is None
    assert await store.lookup("colon.io") == Credential("c", "pass:word")


async def test_a_changed_file_is_read_again(config: Path) -> None:
    store = CredentialStore(str(config))
    assert await store.lookup("quay.io") is None
    write(config, {"auths": {"quay.io": auth("a")}})
    assert await store.lookup("quay.io") == Credential("a", SECRET)
    write(config, {"auths": {"quay.io": auth("longer")}})
    assert await store.lookup("quay.io") == Credential("longer", SECRET)
    remove(config)
    assert await store.lookup("quay.io") is None


@pytest.mark.parametrize("text", ["", "{", '{"auths": []}', '{"auths": {"quay.io": {"auth": "%%%"}}}'])
async def test_a_malformed_file_gives_nothing_and_says_so(config: Path, text: str) -> None:
    write_text(config, text)
    with captured_logs() as logs:
        assert await CredentialStore(str(config)).lookup("quay.io") is None
    assert [entry["event"] for entry in logs] == ["credentials_malformed"]


async def test_a_helper_is_asked_for_the_hosts_it_is_set_for(config: Path, helper: Path) -> None:
    answer = '{\\"Username\\":\\"$host\\",\\"Secret\\":\\"' + SECRET + '\\"}'
    write_text(helper, f'#!/bin/sh\nread -r host\n[ "$1" = get ] && echo "{answer}"\n')
    store = write(
        config, {"credHelpers": {"quay.io": "test", "docker.io": "test"}, "auths": {"other.io": auth("a")}}
    )
    assert await store.lookup("quay.io") == Credential("quay.io", SECRET)
    assert await store.lookup("docker.io") == Credential(DOCKER_IO_KEY, SECRET)
    assert await store.lookup("other.io") == Credential("a", SECRET)


async def test_a_helper_may_give_an_identity_token_without_reading_its_input(
    config: Path, helper: Path
) -> None:
    write_text(helper, f'#!/bin/sh\necho \'{{"Username":"<token>","Secret":"{SECRET}"}}\'\n')
    store = write(config, {"credsStore": "test"})
    assert await store.lookup("quay.io") == Credential("<token>", identity_token=SECRET)


async def test_a_helper_that_knows_nothing_leaves_it_to_the_file(config: Path, helper: Path) -> None:
    write_text(helper, "#!/bin/sh\necho credentials not found in native keychain\nexit 1\n")
    store = write(config, {"credsStore": "test", "auths": {"quay.io": auth("a")}})
    with captured_logs() as logs:
        assert await store.lookup("quay.io") == Credential("a", SECRET)
    assert logs == []


@pytest.mark.parametrize(
    ("name", "body", "event"),
    [
        ("test", f"echo {SECRET}; exit 3", "credential_helper_failed"),
        ("test", f"echo {SECRET}", "credential_helper_failed"),
        ("missing", "", "credential_helper_failed"),
        ("../bin/test", "", "credential_helper_refused"),
    ],
)
async def test_a_helper_that_fails_gives_nothing_and_says_so(
    config: Path, helper: Path, name: str, body: str, event: str
) -> None:
    write_text(helper, f"#!/bin/sh\n{body}\n")
    store = write(config, {"credsStore": name})
    with captured_logs() as logs:
        assert await store.lookup("quay.io") is None
    assert [entry["event"] for entry in logs] == [event]
    assert SECRET not in repr(logs)


def test_no_secret_is_in_a_repr() -> None:
    assert SECRET not in repr(Credential("a", SECRET, SECRET))


def test_the_file_is_where_docker_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    assert docker_config_path(None) == "/home/a/.docker/config.json"
    monkeypatch.setenv("DOCKER_CONFIG", "/etc/docker")
    assert docker_config_path(None) == "/etc/docker/config.json"
    assert docker_config_path("/etc/own.json") == "/etc/own.json"
