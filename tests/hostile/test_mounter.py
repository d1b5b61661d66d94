"""What a registry or an image can do to the mounter, which every lazy container on the node needs."""

from __future__ import annotations

import os

import msgspec
import pytest

from fetcher.store import RegistrySource
from tests.estargz import file
from tests.hostile.raw_server import raw_server, redirect
from tests.mounter.gate_node import GateNode, gate_node, read, until

__all__ = ["gate_node"]

pytestmark = pytest.mark.root


@pytest.fixture
def layer(node: GateNode) -> str:
    return node.add([file("a", b"content of a")])


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.io"])
def test_a_registry_that_refers_to_no_host_ends_no_mounter(node: GateNode, layer: str, host: str) -> None:
    before = node.start()
    path = os.path.join(node.store.directory(layer), "layer.json")
    with raw_server() as server:
        server.words = redirect(f"http://{host}/blob")
        record = node.store.record(layer)
        hostile = msgspec.structs.replace(
            record, sources=[RegistrySource(f"{server.host}/app:latest", plain_http=True)]
        )
        with open(path, "wb") as written:
            written.write(msgspec.json.encode(hostile))
        node.mounter.connect(layer)
        until(lambda: len(server.requests) > 0, "a connection")
        until(lambda: b"not_connected" in read(node.root, "mounter.log"), "its end")
    assert node.mounter.status().pid == before.pid
    with open(path, "wb") as written:
        written.write(msgspec.json.encode(record))
    assert read(node.container(layer), "a") == b"content of a"
