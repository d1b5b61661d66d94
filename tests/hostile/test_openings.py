"""What an image can make serve do by its manifest: opening layers, before anything of them is known."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel
import httpx
import pytest

from fetcher.credentials import CredentialStore
from fetcher.errors import FetchError, RegistryNotFound
from fetcher.logs import captured_logs
from fetcher.manifest import TOC_DIGEST
from fetcher.reference import Reference
from fetcher.registry import RegistryClient
from fetcher.settings import RegistrySettings
from fetcher.sources import BlobSources
from fetcher.store import LayerStore
from snapshotter.images import Images
from snapshotter.mounts import MAX_LOWERS
from snapshotter.remote import RemoteLayer
from tests import oci
from tests.estargz import build, file
from tests.fetcher.conftest import reply

pytestmark = pytest.mark.anyio

REFERENCE: Final = "good.io/team/app:latest"
TOC: Final = "sha256:" + "1" * 64
Answer = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def manifest(layers: int) -> bytes:
    """An image of so many layers, each of which promises a table of contents."""
    descriptors = [
        {"digest": digest(number), "size": 1000, "mediaType": "", "annotations": {TOC_DIGEST: TOC}}
        for number in range(layers)
    ]
    config = {"digest": digest(0), "size": 1, "mediaType": oci.CONFIG}
    return json.dumps({"schemaVersion": 2, "config": config, "layers": descriptors}).encode()


class Sources(BlobSources):
    """Sources whose network is a function."""

    def __init__(self, root: Path, answer: Answer) -> None:
        super().__init__(RegistrySettings())
        self._only = RegistryClient(
            RegistrySettings(retry_limit=0),
            CredentialStore(str(root / "config.json")),
            transport=httpx.MockTransport(answer),
        )

    async def client(self, reference: Reference, *, plain_http: bool = False) -> RegistryClient:
        return self._only


@asynccontextmanager
async def opening(root: Path, answer: Answer) -> AsyncIterator[Images]:
    async with Sources(root, answer) as sources, anyio.create_task_group() as tasks:
        yield Images(LayerStore(str(root)), sources, tasks, opened=lambda layer: None)


async def test_no_image_opens_all_its_layers_at_once(tmp_path: Path) -> None:
    now, most, count = 0, 0, 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal now, most, count
        now += 1
        count += 1
        most = max(most, now)
        for _ in range(500):
            await anyio.lowlevel.checkpoint()
        now -= 1
        return reply(404)

    async with opening(tmp_path, answer) as images:
        assert images.open_image(REFERENCE, manifest(40), plain_http=False) == 40
    assert count == 40
    assert most == 16


async def test_layers_that_no_mount_could_have_are_left_alone(tmp_path: Path) -> None:
    asked: set[str] = set()

    async def answer(request: httpx.Request) -> httpx.Response:
        asked.add(request.url.path)
        return reply(404)

    async with opening(tmp_path, answer) as images:
        assert images.open_image(REFERENCE, manifest(5000), plain_http=False) == MAX_LOWERS
    assert len(asked) == MAX_LOWERS


async def test_what_nobody_foresaw_fails_its_layer_alone(tmp_path: Path) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith(digest(1)):
            raise RuntimeError("nobody foresaw this")
        return reply(404)

    with captured_logs() as events:
        async with opening(tmp_path, answer) as images:
            images.open_image(REFERENCE, manifest(3), plain_http=False)
            with pytest.raises(FetchError, match="nobody foresaw this"):
                await images.open(RemoteLayer(REFERENCE, digest(1), TOC, None))
    failed = {str(event["digest"]) for event in events if event["event"] == "layer_not_opened"}
    assert failed == {digest(0), digest(1), digest(2)}


async def test_a_manifest_without_the_layer_that_is_asked_for(tmp_path: Path) -> None:
    """It may be a tag that has moved: the layer is asked for by its own digest, and what comes is doubted."""
    ours, theirs = build([file("a", b"ours")]), build([file("a", b"theirs")])
    served = oci.image([theirs])

    async def answer(request: httpx.Request) -> httpx.Response:
        if "/manifests/" in request.url.path:
            return reply(200, served.manifest, content_type=oci.MANIFEST)
        return reply(404) if request.url.path.endswith(ours.digest) else reply(200, b"no layer at all")

    with captured_logs() as events:
        async with opening(tmp_path, answer) as images:
            with pytest.raises(RegistryNotFound, match=r"good\.io"):
                await images.open(RemoteLayer(REFERENCE, ours.digest, ours.toc_digest, None))
            with pytest.raises(FetchError, match=r"good\.io"):
                await images.open(RemoteLayer(REFERENCE, theirs.digest, theirs.toc_digest, None))
    assert [event["digest"] for event in events if event["event"] == "layer_not_in_manifest"] == [ours.digest]
    assert LayerStore(str(tmp_path)).layers() == []
