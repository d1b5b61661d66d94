from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from fetcher.store import boot_id
from snapshotter.containerd.client import ContainerdClient, connect
from snapshotter.containerd.errors import (
    ContainerdNotFound,
    ContainerdRefused,
    ContainerdUnreachable,
    ContentLocked,
    SnapshotterUnknown,
    SnapshotterUnreachable,
)
from snapshotter.containerd.types import Descriptor, Image
from snapshotter.processes import Process
from tests import oci
from tests.integration.harness import Containerd

ResultT = TypeVar("ResultT")


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    directory = str(tmp_path_factory.mktemp("containerd"))
    dead = {"dead": f"{directory}/dead.sock"}
    with Containerd(directory, snapshotters=dead) as running:
        yield running


def ask(containerd: Containerd, question: Callable[[ContainerdClient], Awaitable[ResultT]]) -> ResultT:
    async def asked() -> ResultT:
        async with connect(containerd.address, "test", patience=0.5) as client, client.leased(60) as leased:
            return await question(leased)

    return asyncio.run(asked())


class Content:
    """Bytes to store, which remembers from where they were asked for."""

    def __init__(self, data: bytes, *, fail_after: int | None = None) -> None:
        self.data = data
        self.fail_after = fail_after
        self.offsets: list[int] = []

    @asynccontextmanager
    async def source(self, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self.offsets.append(offset)
        yield self._blocks(offset)

    async def _blocks(self, offset: int) -> AsyncIterator[bytes]:
        for start in range(offset, len(self.data), 1 << 16):
            if self.fail_after is not None and start >= self.fail_after:
                raise ConnectionResetError
            yield self.data[start : start + (1 << 16)]


async def store(
    client: ContainerdClient, content: Content, *, digest: str | None = None, size: int | None = None
) -> bool:
    digest = digest or oci.digest(content.data)
    return await client.write_content(
        f"layer-{digest}",
        digest=digest,
        size=len(content.data) if size is None else size,
        labels={"a": "1"},
        source=content.source,
    )


def connecting(address: str) -> None:
    async def connected() -> None:
        async with connect(address, "test"):
            pytest.fail("nothing listens there")

    asyncio.run(connected())


def test_a_missing_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ContainerdUnreachable, match=r"no containerd at .*/none\.sock \(No such file.*start it"
    ):
        connecting(f"{tmp_path}/none.sock")


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ContainerdUnreachable, match="is not a socket"):
        connecting(f"{tmp_path}/file")


def test_a_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    address = f"{tmp_path}/old.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(address)
    with pytest.raises(ContainerdUnreachable, match=r"does not answer at .*is it running"):
        connecting(f"unix://{address}")


@pytest.mark.containerd
def test_version_and_snapshotters(containerd: Containerd) -> None:
    assert ask(containerd, ContainerdClient.version)[0].isdigit()
    assert {"overlayfs", "dead"} <= set(ask(containerd, ContainerdClient.snapshotters))


@pytest.mark.containerd
def test_an_unknown_snapshotter_is_told_with_the_stanza_it_needs(containerd: Containerd) -> None:
    with pytest.raises(SnapshotterUnknown, match=r"'nix'.*overlayfs.*\[proxy_plugins\.nix\]"):
        ask(containerd, lambda client: client.require_snapshotter("nix"))
    ask(containerd, lambda client: client.require_snapshotter("overlayfs"))


@pytest.mark.containerd
def test_a_snapshotter_whose_process_is_gone(containerd: Containerd) -> None:
    with pytest.raises(SnapshotterUnreachable, match="'dead' does not answer"):
        ask(containerd, lambda client: client.prepare("dead", "key", "", {}))


@pytest.mark.containerd
def test_what_is_not_there_is_none(containerd: Containerd) -> None:
    absent = oci.digest(b"absent")
    assert ask(containerd, lambda client: client.stat_snapshot("overlayfs", absent)) is None
    assert ask(containerd, lambda client: client.content_info(absent)) is None
    assert ask(containerd, lambda client: client.image("absent")) is None
    ask(containerd, lambda client: client.remove_snapshot("overlayfs", absent))
    with pytest.raises(ContainerdNotFound):
        ask(containerd, lambda client: client.label_content(absent, {"a": "1"}))


@pytest.mark.containerd
@pytest.mark.parametrize("size", [1, (1 << 20) - 1, 1 << 20, (2 << 20) + 7])
def test_content_is_stored_once_with_its_labels(containerd: Containerd, size: int) -> None:
    content = Content(os.urandom(size))

    async def twice(client: ContainerdClient) -> None:
        assert await store(client, content)
        assert not await store(client, content)
        await client.label_content(oci.digest(content.data), {"b": "2"})
        info = await client.content_info(oci.digest(content.data))
        assert info is not None
        assert (info.size, info.labels) == (size, {"a": "1", "b": "2"})

    ask(containerd, twice)
    assert content.offsets == [0]


@pytest.mark.containerd
def test_an_interrupted_write_goes_on_where_it_stopped(containerd: Containerd) -> None:
    content = Content(os.urandom(3 << 20), fail_after=2 << 20)

    async def interrupted(client: ContainerdClient) -> None:
        with pytest.raises(ConnectionResetError):
            await store(client, content)
        content.fail_after = None
        while True:  # until containerd has noticed that the first stream is gone
            try:
                assert await store(client, content)
                return
            except ContentLocked:
                await asyncio.sleep(0.01)

    ask(containerd, interrupted)
    assert content.offsets == [0, 2 << 20]


@pytest.mark.containerd
def test_wrong_bytes_are_refused_and_forgotten(containerd: Containerd) -> None:
    true, false = os.urandom(100_000), os.urandom(100_000)

    async def wrong_then_right(client: ContainerdClient) -> None:
        with pytest.raises(ContainerdRefused) as caught:
            await store(client, Content(false), digest=oci.digest(true))
        assert caught.value.code == "FAILED_PRECONDITION"
        assert await client.content_info(oci.digest(true)) is None
        again = Content(true)
        assert await store(client, again)
        assert again.offsets == [0]

    ask(containerd, wrong_then_right)


@pytest.mark.containerd
def test_two_writers_of_one_blob_do_not_mix(containerd: Containerd) -> None:
    data = os.urandom(200_000)
    begun = asyncio.Event()

    class Slow(Content):
        async def _blocks(self, offset: int) -> AsyncIterator[bytes]:
            begun.set()
            await asyncio.Event().wait()
            yield b""

    async def race(client: ContainerdClient) -> None:
        first = asyncio.create_task(store(client, Slow(data)))
        await begun.wait()
        with pytest.raises(ContentLocked):
            await store(client, Content(data))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    ask(containerd, race)


@pytest.mark.containerd
def test_an_image_record_moves_to_another_target_and_keeps_its_labels(containerd: Containerd) -> None:
    first, second = (Descriptor(oci.MANIFEST, oci.digest(text), len(text)) for text in (b"first", b"second!"))

    async def moved(client: ContainerdClient) -> Image | None:
        await client.put_image(Image("moving:1", first, {"a": "1", "b": "1"}))
        await client.put_image(Image("moving:1", second, {"b": "2"}))
        return await client.image("moving:1")

    assert ask(containerd, moved) == Image("moving:1", second, {"a": "1", "b": "2"})


@pytest.mark.containerd
def test_a_lease_ends_with_its_block(containerd: Containerd) -> None:
    def leases() -> list[str]:
        return containerd.ctr("--namespace", "test", "leases", "list", "--quiet").split()

    async def inside(client: ContainerdClient) -> list[str]:
        return await asyncio.to_thread(leases)

    assert len(ask(containerd, inside)) == 1
    assert leases() == []


@pytest.mark.containerd
def test_leases_of_killed_processes_are_deleted(containerd: Containerd) -> None:
    here = {"boot": boot_id(), "namespace": os.readlink("/proc/self/ns/pid")}
    ours = msgspec.to_builtins(Process.current())
    killed = {**ours, "start_time": 1}
    holders = {
        "layergate-1-runs": {**here, "process": ours},
        "layergate-2-killed": {**here, "process": killed},
        "layergate-3-another-boot": {**here, "boot": "another", "process": ours},
        "layergate-4-another-container": {**here, "namespace": "pid:[1]", "process": killed},
    }
    leases = ["--namespace", "test", "leases"]
    for name, holder in holders.items():
        containerd.ctr(*leases, "create", "--id", name, f"layergate/holder={json.dumps(holder)}")
    others = {"layergate-5-says-nothing", "somebody-else"}
    for name in others:
        containerd.ctr(*leases, "create", "--id", name)

    async def nothing(_client: ContainerdClient) -> None:
        pass

    try:
        ask(containerd, nothing)
        left = set(containerd.ctr(*leases, "list", "--quiet").split())
        assert left == others | {"layergate-1-runs", "layergate-4-another-container"}
    finally:
        for name in containerd.ctr(*leases, "list", "--quiet").split():
            containerd.ctr(*leases, "delete", name)
