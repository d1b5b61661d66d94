from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from fetcher.credentials import CredentialStore
from fetcher.errors import FormatError, RegistryNotFound, VerificationError
from fetcher.manifest import Platform
from fetcher.reference import parse_reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from snapshotter.containerd.image import PullableImage, UnusableImage
from snapshotter.containerd.resolve import pullable_image
from tests import oci
from tests.snapshotter.pull_images import text_layer

HOST = "registry.test"
IMAGE = oci.image([text_layer("plain", "plain"), text_layer("lazy", "lazy", lazy=True)])


def with_config(config: object) -> oci.Image:
    """IMAGE with another config."""
    data = json.dumps(config).encode()
    manifest = json.loads(IMAGE.manifest)
    manifest["config"] |= {"digest": oci.digest(data), "size": len(data)}
    return dataclasses.replace(IMAGE, config=data, manifest=json.dumps(manifest).encode())


def served(data: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """A body that has yet to be read, as from a network."""
    return httpx.Response(status, stream=httpx.ByteStream(data), headers=headers)


def resolve(
    tmp_path: Path,
    image: oci.Image,
    *,
    name: str = f"{HOST}/some/image:1",
    architecture: str = "amd64",
    tamper: bool = False,
) -> PullableImage:
    index = oci.index(image, architecture=architecture)
    held = image.blobs | {oci.digest(data): data for data in (index, image.manifest)}

    def answer(request: httpx.Request) -> httpx.Response:
        what = request.url.path.rpartition("/")[2]
        if what in held:
            data = held[what]
            if tamper and what == oci.digest(image.config):
                data = data.replace(b"linux", b"plan9")
            return served(data)
        if what == "1":
            return served(index)
        return httpx.Response(404)

    async def resolved() -> PullableImage:
        client = RegistryClient(
            RegistrySettings(retry_limit=0),
            CredentialStore(str(tmp_path / "config.json")),
            transport=httpx.MockTransport(answer),
        )
        async with client:
            resolved = await client.manifest(parse_reference(name), platform=Platform("linux", "amd64"))
            return await pullable_image(client, resolved)

    (tmp_path / "config.json").write_text("{}")
    return asyncio.run(resolved())


def test_an_image_has_its_documents_and_descriptors(tmp_path: Path) -> None:
    image = resolve(tmp_path, IMAGE)
    index = oci.index(IMAGE)
    assert image.index is not None
    assert (image.index.content, image.manifest.content, image.config.content) == (
        index,
        IMAGE.manifest,
        IMAGE.config,
    )
    assert (image.target.media_type, image.target.digest) == (oci.INDEX, oci.digest(index))
    assert image.siblings == (IMAGE.digest,)
    assert [layer.digest for layer in image.layers] == [layer.digest for layer in IMAGE.layers]
    assert image.layers[1].annotations == IMAGE.layers[1].annotations
    assert image.diff_ids == tuple(layer.diff_id for layer in IMAGE.layers)
    assert (image.host, image.repository) == (HOST, "some/image")
    assert image.digest_name == f"{HOST}/some/image@{oci.digest(index)}"


@pytest.mark.parametrize(
    ("name", "record"),
    [
        (f"{HOST}/some/image:1", f"{HOST}/some/image:1"),
        (f"{HOST}/some/image@{IMAGE.digest}", f"{HOST}/some/image@{IMAGE.digest}"),
        (f"{HOST}/some/image:1@{IMAGE.digest}", f"{HOST}/some/image@{IMAGE.digest}"),
    ],
)
def test_a_digest_makes_the_tag_void_in_the_record(tmp_path: Path, name: str, record: str) -> None:
    assert resolve(tmp_path, IMAGE, name=name).name == record


def test_a_manifest_without_an_index_is_the_target(tmp_path: Path) -> None:
    image = resolve(tmp_path, IMAGE, name=f"{HOST}/some/image@{IMAGE.digest}")
    assert image.index is None
    assert image.target.digest == IMAGE.digest


def test_layers_are_opened_from_an_offset(tmp_path: Path) -> None:
    # The blob's own behaviour is fetcher's to test; here, that it is the layer's, and to its end.
    data = IMAGE.layers[0].blob

    def answer(request: httpx.Request) -> httpx.Response:
        what = request.url.path.rpartition("/")[2]
        if what == IMAGE.layers[0].digest:
            start = int(request.headers["range"].removeprefix("bytes=").partition("-")[0])
            headers = {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return served(data[start:], status=206, headers=headers)
        return served({**IMAGE.blobs, "1": IMAGE.manifest}[what])

    async def read() -> bytes:
        client = RegistryClient(
            RegistrySettings(), CredentialStore(str(tmp_path)), transport=httpx.MockTransport(answer)
        )
        async with client:
            reference, platform = parse_reference(f"{HOST}/a/b:1"), Platform("linux", "amd64")
            image = await pullable_image(client, await client.manifest(reference, platform=platform))
            async with image.open_layer(image.layers[0], 5) as blocks:
                return b"".join([block async for block in blocks])

    (tmp_path / "config.json").write_text("{}")
    assert asyncio.run(read()) == data[5:]


@pytest.mark.parametrize("config", [{}, {"rootfs": {"diff_ids": ["sha256:short"]}}, {"rootfs": {}}, []])
def test_a_config_without_layers_is_named(tmp_path: Path, config: object) -> None:
    with pytest.raises(UnusableImage, match=f"{HOST}/some/image:1 has no config that a container"):
        resolve(tmp_path, with_config(config))


def test_a_config_that_counts_other_layers(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="lists 2 layers and its config 0"):
        resolve(tmp_path, with_config({"rootfs": {"diff_ids": []}}))


def test_a_config_with_other_content(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=oci.digest(IMAGE.config)):
        resolve(tmp_path, IMAGE, tamper=True)


def test_the_platforms_that_are_there_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFound, match="no image for linux/amd64; there is: linux/s390x"):
        resolve(tmp_path, IMAGE, architecture="s390x")
