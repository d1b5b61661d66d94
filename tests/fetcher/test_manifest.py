from __future__ import annotations

import json
import os
from collections.abc import Callable

import pytest

from fetcher.errors import FormatError, InvalidReference
from fetcher.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    TOC_DIGEST,
    Platform,
    choose_manifest,
    document_type,
    parse_config_platform,
    parse_diff_ids,
    parse_index,
    parse_manifest,
)

DIGESTS = [f"sha256:{number:064x}" for number in range(20)]


def index(*platforms: tuple[str, str, str] | None, media_type: str = OCI_MANIFEST) -> bytes:
    entries = []
    for digest, platform in zip(DIGESTS, platforms, strict=False):
        entry: dict[str, object] = {"mediaType": media_type, "digest": digest, "size": 1}
        if platform is not None:
            keys = ("os", "architecture", "variant")
            entry["platform"] = {key: word for key, word in zip(keys, platform, strict=True) if word}
        entries.append(entry)
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def chosen(data: bytes, platform: str) -> int | None:
    descriptor = choose_manifest(parse_index(data), Platform.parse(platform))
    return None if descriptor is None else DIGESTS.index(descriptor.digest)


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/arm64"])
def test_a_platform_survives_its_own_text(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["linux", "", "linux/", "linux/arm/v7/x", "Linux/AMD64", "linux /amd64"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        Platform.parse(text)


def test_the_host_is_linux_in_go_words() -> None:
    host = Platform.host()
    assert host.os == "linux"
    assert host.architecture != os.uname().machine or os.uname().machine in ("riscv64", "s390x", "ppc64le")


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux/amd64", 0),
        ("linux/arm64", 1),
        ("linux/arm/v7", 3),
        ("linux/arm/v6", 2),
        ("linux/arm/v8", 3),
        ("linux/arm/v5", None),
        ("linux/s390x", None),
        ("windows/amd64", None),
    ],
)
def test_the_best_manifest_of_an_index_is_chosen(platform: str, expected: int | None) -> None:
    data = index(
        ("linux", "amd64", ""),
        ("linux", "arm64", "v8"),
        ("linux", "arm", "v6"),
        ("linux", "arm", "v7"),
        ("unknown", "unknown", ""),
    )
    assert chosen(data, platform) == expected


def test_an_image_for_a_better_processor_is_left_out() -> None:
    data = index(("linux", "amd64", "v3"), ("linux", "amd64", ""))
    assert chosen(data, "linux/amd64") == 1
    assert chosen(data, "linux/amd64/v3") == 0
    assert chosen(data, "linux/amd64/v2") == 1


def test_the_first_of_equals_is_chosen() -> None:
    assert chosen(index(("linux", "amd64", ""), ("linux", "amd64", "v1")), "linux/amd64") == 0


def test_a_lone_manifest_without_a_platform_is_for_any() -> None:
    assert chosen(index(None), "linux/amd64") == 0
    assert chosen(index(None, None), "linux/amd64") is None


def test_what_is_no_image_manifest_is_not_listed() -> None:
    assert parse_index(index(("linux", "amd64", ""), media_type=OCI_INDEX)) == []


def test_a_manifest_has_a_config_and_layers_with_their_toc_digests() -> None:
    layers: list[dict[str, object]] = [
        {
            "mediaType": "t",
            "digest": DIGESTS[1],
            "size": 7,
            "annotations": {TOC_DIGEST: DIGESTS[9], "a": "b"},
        },
        {"mediaType": "t", "digest": DIGESTS[2], "size": 8, "annotations": {TOC_DIGEST: "nonsense"}},
        {"mediaType": "t", "digest": DIGESTS[3], "size": 9, "annotations": None},
    ]
    config = {"mediaType": "c", "digest": DIGESTS[0], "size": 3}
    manifest = parse_manifest(json.dumps({"config": config, "layers": layers}).encode())
    assert (manifest.config.digest, manifest.config.size, manifest.config.media_type) == (DIGESTS[0], 3, "c")
    assert [layer.size for layer in manifest.layers] == [7, 8, 9]
    assert [layer.toc_digest for layer in manifest.layers] == [DIGESTS[9], None, None]
    assert manifest.layers[0].annotations["a"] == "b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"config": {"digest": "sha256:1", "size": 1}, "layers": []}',
        f'{{"config": {{"digest": "{DIGESTS[0]}", "size": -1}}, "layers": []}}',
        f'{{"config": {{"digest": "{DIGESTS[0]}", "size": 1}}}}',
    ],
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_manifest(text.encode())


@pytest.mark.parametrize("text", ["", "{}", '{"manifests": [{"mediaType": "x", "size": 1}]}'])
def test_what_is_no_index_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_index(text.encode())


@pytest.mark.parametrize(
    ("body", "served", "expected"),
    [
        ({"schemaVersion": 2, "mediaType": OCI_MANIFEST}, "text/plain", OCI_MANIFEST),
        ({"schemaVersion": 2, "mediaType": DOCKER_LIST}, DOCKER_LIST, DOCKER_LIST),
        ({"schemaVersion": 2}, f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        ({"schemaVersion": 2, "layers": []}, "", OCI_MANIFEST),
        ({"schemaVersion": 2, "manifests": []}, "application/json", OCI_INDEX),
    ],
)
def test_the_type_is_the_documents_own_or_else_the_servers(
    body: dict[str, object], served: str, expected: str
) -> None:
    assert document_type(json.dumps(body).encode(), served) == expected


@pytest.mark.parametrize(
    "body",
    [
        {"schemaVersion": 1, "fsLayers": []},
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.artifact.manifest.v1+json"},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "layers": []},
        [],
    ],
)
def test_what_is_neither_index_nor_manifest_is_refused(body: object) -> None:
    with pytest.raises(FormatError):
        document_type(json.dumps(body).encode(), "application/vnd.docker.distribution.manifest.v1+prettyjws")


@pytest.mark.parametrize(
    "parse",
    [parse_manifest, parse_index, parse_diff_ids, parse_config_platform, lambda it: document_type(it, "")],
)
@pytest.mark.parametrize("data", [b'{"os": "\xff", "mediaType": "\xff"}', b"[" * 100_000, b"", b"null"])
def test_what_is_no_text_is_refused_like_anything_else(parse: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


def test_a_config_says_what_it_is_for_and_what_its_layers_are() -> None:
    config = json.dumps(
        {"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": DIGESTS[:2]}}
    ).encode()
    assert parse_config_platform(config) == Platform("linux", "arm64")
    assert parse_diff_ids(config) == tuple(DIGESTS[:2])
    assert parse_config_platform(b"{}") is None
    with pytest.raises(FormatError):
        parse_diff_ids(b'{"rootfs": {"diff_ids": ["sha256:1"]}}')


def test_nested_indexes_are_listed_where_they_are_asked_for() -> None:
    data = index(None, media_type=OCI_INDEX)
    assert parse_index(data) == []
    assert [entry.descriptor.digest for entry in parse_index(data, types={OCI_INDEX})] == DIGESTS[:1]
