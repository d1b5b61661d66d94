from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.errors import InvalidReference
from fetcher.reference import Reference, parse_digest, parse_reference, short_digest

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"

lower = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
labels = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,6}[a-zA-Z0-9])?", fullmatch=True)
ports = st.integers(1, 65535).map(lambda port: f":{port}")
hosts = st.one_of(
    st.builds(lambda first, rest: ".".join([first, *rest]), labels, st.lists(labels, min_size=1, max_size=3)),
    st.builds(lambda label, port: label + port, labels, ports),
    st.just("localhost"),
    ports.map(lambda port: f"[::1]{port}"),
).filter(lambda host: host not in ("docker.io", "index.docker.io"))
components = st.builds(
    lambda parts, separator: separator.join(parts),
    st.lists(lower, min_size=1, max_size=3),
    st.sampled_from([".", "_", "__", "-", "---"]),
)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,20}", fullmatch=True)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(lambda digits: f"sha256:{digits}")


@given(hosts, repositories, st.none() | tags, st.none() | digests)
def test_every_reference_survives_its_own_text(
    host: str, repository: str, tag: str | None, digest: str | None
) -> None:
    if tag is None and digest is None:
        tag = "latest"
    reference = Reference(host, repository, tag, digest)
    assert parse_reference(str(reference)) == reference


@given(st.text(max_size=60))
def test_any_text_is_parsed_into_something_canonical_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.11", "docker.io/library/python:3.11"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/python", "docker.io/library/python:latest"),
        ("index.docker.io/team/app:1", "docker.io/team/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:a", "localhost:5000/app:a"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("quay.io/team/deep/er/app:v1", "quay.io/team/deep/er/app:v1"),
        (f"quay.io/app@{DIGEST}", f"quay.io/app@{DIGEST}"),
        (f"quay.io/app:v1@{DIGEST}", f"quay.io/app:v1@{DIGEST}"),
    ],
)
def test_names_are_normalised_as_docker_does(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "app:",
        "app:-tag",
        "app@",
        "app@sha256:abc",
        f"app@sha512:{HEX}",
        "team/App",
        "quay.io/",
        "quay.io//app",
        "quay.io/app ",
        "quay.io/app\n",
        "-host.io/app",
        "user:secret@quay.io/app",
        "https://quay.io/app",
        "quay.io/../app",
        "quay.io/app:" + "a" * 129,
        "quay.io/" + "a" * 250,
        HEX,
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def test_the_digest_is_asked_for_before_the_tag() -> None:
    reference = parse_reference("quay.io/app:v1")
    assert reference.target == "v1"
    assert reference.name == "quay.io/app"
    assert reference.with_digest(DIGEST).target == DIGEST
    assert str(reference.with_digest(DIGEST)) == f"quay.io/app:v1@{DIGEST}"
    with pytest.raises(InvalidReference):
        reference.with_digest("v2")


@pytest.mark.parametrize(
    "text", [f"sha256:{HEX.upper()}", HEX, f"sha256:{HEX}0", f"sha256:{HEX}\n", "sha256:"]
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_digest(text)


def test_digests_are_shortened_for_messages() -> None:
    assert short_digest(parse_digest(DIGEST)) == "sha256:0123456789ab"
