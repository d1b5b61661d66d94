"""Pushing whole images to a registry that may fail, and that has a neighbour's blobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetcher.errors import InvalidReference, RegistryUnauthorized, RegistryUnavailable
from fetcher.images.registry_destination import RegistryDestination
from fetcher.reference import parse_reference
from tests import oci
from tests.faulty_registry import FaultyRegistry
from tests.fetcher.conftest import Clients
from tests.fetcher.destinations import IMAGE, OTHER, Writer
from tests.fetcher.test_auth import log_in
from tests.registry_faults import BearerLogin, Status

pytestmark = pytest.mark.anyio

REPOSITORY = "team/app"


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def put(registry: FaultyRegistry) -> list[str]:
    """What was put as manifests, in order."""
    return [
        path.rpartition("/")[2]
        for kind, method, path, _ in registry.log
        if kind == "manifest" and method == "PUT"
    ]


def uploaded(registry: FaultyRegistry) -> int:
    """How many uploads came to their end."""
    return sum("digest=" in path for _, method, path, _ in registry.log if method == "PUT")


async def push(
    registry: FaultyRegistry,
    make_client: Clients,
    writer: Writer,
    image: oci.Image = IMAGE,
    *,
    source: str | None = None,
) -> dict[str, int]:
    """Push the image; the bytes that were said to be sent of each blob."""
    sent: dict[str, int] = {}
    async with make_client() as client:
        destination = RegistryDestination(
            client,
            parse_reference(f"{registry.host}/{REPOSITORY}:v1"),
            source=None if source is None else parse_reference(source),
            sent=lambda digest, count: sent.update({digest: count}),
        )
        await writer.image(destination, image)
    return sent


async def test_an_image_is_pushed_with_its_tag_last(
    registry: FaultyRegistry, make_client: Clients, writer: Writer
) -> None:
    sent = await push(registry, make_client, writer)
    assert registry.manifest(REPOSITORY, "v1") == (oci.MANIFEST, IMAGE.manifest)
    assert {name: registry.blob(name, REPOSITORY) for name in IMAGE.blobs} == IMAGE.blobs
    assert sent == {name: len(data) for name, data in IMAGE.blobs.items()}
    kind, method, path, _ = registry.log[-1]
    assert (kind, method, path) == ("manifest", "PUT", f"/v2/{REPOSITORY}/manifests/v1")
    assert registry.uploads.open == {}


async def test_what_is_there_is_not_sent_again(
    registry: FaultyRegistry, make_client: Clients, writer: Writer
) -> None:
    await push(registry, make_client, writer)
    sent = await push(registry, make_client, writer, OTHER)
    assert sent == {oci.digest(OTHER.config): len(OTHER.config)}
    assert await push(registry, make_client, writer) == {}
    assert registry.uploads.open == {}


async def test_an_index_goes_with_its_images_first(
    registry: FaultyRegistry, make_client: Clients, writer: Writer
) -> None:
    async with make_client() as client:
        destination = RegistryDestination(client, parse_reference(f"{registry.host}/{REPOSITORY}:v1"))
        root = await writer.index(destination, IMAGE, OTHER)
    assert put(registry) == [IMAGE.digest, OTHER.digest, "v1"]
    assert registry.manifest(REPOSITORY, "v1") == (oci.INDEX, root.data)


class TestMounts:
    async def test_blobs_of_the_source_are_mounted(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        for data in IMAGE.blobs.values():
            registry.add_blob(data, repository="team/base")
        sent = await push(registry, make_client, writer, source=f"{registry.host}/team/base:v1")
        assert sent == {}
        assert uploaded(registry) == 0
        assert {name: registry.blob(name, REPOSITORY) for name in IMAGE.blobs} == IMAGE.blobs

    async def test_what_the_source_does_not_have_goes_on_with_the_upload_that_was_begun(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        await push(registry, make_client, writer, source=f"{registry.host}/team/base:v1")
        begun = sum(method == "POST" for _, method, *_ in registry.log)
        assert begun == 1 + len(IMAGE.blobs)  # one to see whether we may
        assert registry.uploads.open == {}

    @pytest.mark.parametrize("source", ["other.io/team/base:v1", None])
    async def test_there_is_none_from_elsewhere(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer, source: str | None
    ) -> None:
        await push(registry, make_client, writer, source=source)
        assert not any("mount=" in path for _, _, path, _ in registry.log)

    async def test_there_is_none_within_a_repository(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        await push(registry, make_client, writer, source=f"{registry.host}/{REPOSITORY}:v0")
        assert not any("mount=" in path for _, _, path, _ in registry.log)

    async def test_a_token_covers_both_repositories(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        log_in(make_client, registry.host)
        registry.require(BearerLogin("user", "opensesame"))
        for data in IMAGE.blobs.values():
            registry.add_blob(data, repository="team/base")
        assert await push(registry, make_client, writer, source=f"{registry.host}/team/base:v1") == {}


class TestFailures:
    @pytest.mark.parametrize("path", ["digest=", "/manifests/"])
    async def test_a_failed_push_leaves_no_tag(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer, path: str
    ) -> None:
        for kind in ("upload", "manifest"):
            registry.fail(kind, Status(500), path=path)
        with pytest.raises(RegistryUnavailable):
            await push(registry, make_client, writer)
        assert registry.manifest(REPOSITORY, "v1") is None

    async def test_an_older_tag_stays(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        await push(registry, make_client, writer, OTHER)
        registry.fail("upload", Status(500), path="digest=")
        with pytest.raises(RegistryUnavailable):
            await push(registry, make_client, writer)
        assert registry.manifest(REPOSITORY, "v1") == (oci.MANIFEST, OTHER.manifest)

    async def test_without_rights_nothing_is_read_before_the_error(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        registry.require(BearerLogin("user", "opensesame"))
        with pytest.raises(RegistryUnauthorized):
            await push(registry, make_client, writer)
        assert uploaded(registry) == 0
        assert registry.requests["blob"] == 0

    async def test_a_giving_up_writer_leaves_no_upload_behind(
        self, registry: FaultyRegistry, make_client: Clients, writer: Writer
    ) -> None:
        async with make_client() as client:
            reference = parse_reference(f"{registry.host}/{REPOSITORY}:v1")
            with pytest.raises(RuntimeError):
                async with RegistryDestination(client, reference):
                    raise RuntimeError
        assert registry.uploads.open == {}
        assert put(registry) == []


@pytest.mark.parametrize("text", [f"a.io/app@{IMAGE.digest}", f"a.io/app:v1@{IMAGE.digest}"])
async def test_a_destination_is_a_tag(make_client: Clients, text: str) -> None:
    async with make_client() as client:
        with pytest.raises(InvalidReference, match="pushed to a tag"):
            RegistryDestination(client, parse_reference(text))
