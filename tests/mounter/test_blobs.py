"""Connections that are made before they are needed."""

from __future__ import annotations

import anyio
import pytest

from fetcher.errors import RegistryNotFound
from fetcher.settings import RegistrySettings
from fetcher.store import FileSource, LayerRecord, RegistrySource
from mounter.blobs import Blobs
from tests.faulty_registry import FaultyRegistry

BLOB = bytes(range(256)) * 16


def record(registry: FaultyRegistry, digest: str) -> LayerRecord:
    source = RegistrySource(f"{registry.host}/some/image:latest")
    return LayerRecord(digest, digest, len(BLOB), 0, [source])


def test_a_connection_that_is_there_is_used() -> None:
    async def run() -> None:
        layer = record(registry, registry.add_blob(BLOB))
        blobs = Blobs(RegistrySettings())
        try:
            await blobs.connect(layer)
            assert registry.connections == 1
            assert await (await blobs.open(layer.sources[0], layer)).read(16, 32) == BLOB[16:32]
            assert registry.connections == 1
        finally:
            await blobs.aclose()

    with FaultyRegistry() as registry:
        anyio.run(run, backend="trio")


def test_one_connection_for_all_layers_of_an_image() -> None:
    async def run() -> None:
        layers = [record(registry, registry.add_blob(BLOB[1:] + bytes([number]))) for number in range(5)]
        blobs = Blobs(RegistrySettings())
        try:
            for layer in layers:
                await blobs.connect(layer)
        finally:
            await blobs.aclose()
        assert registry.requests["blob"] == 1

    with FaultyRegistry() as registry:
        anyio.run(run, backend="trio")


def test_a_layer_in_a_file_needs_none() -> None:
    async def run() -> None:
        blobs = Blobs(RegistrySettings())
        await blobs.connect(LayerRecord("sha256:0", "sha256:1", 1, 0, [FileSource("/nowhere/at/all")]))
        await blobs.aclose()

    anyio.run(run, backend="trio")


def test_a_blob_that_is_not_there_is_an_error() -> None:
    async def run() -> None:
        blobs = Blobs(RegistrySettings())
        try:
            with pytest.raises(RegistryNotFound):
                await blobs.connect(record(registry, "sha256:" + "0" * 64))
        finally:
            await blobs.aclose()

    with FaultyRegistry() as registry:
        anyio.run(run, backend="trio")
