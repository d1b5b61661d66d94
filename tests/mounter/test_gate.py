"""The gate on real FUSE, below real lazy lowers."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from concurrent.futures import wait

import pytest

from fetcher.nodes import Node
from fetcher.store import FileSource
from mounter.lowers import Meta, lazy_id, lazy_path
from mounter.probe import Mode
from mounter.settings import MounterSettings
from tests.estargz import dir, file, hardlink, symlink
from tests.mounter.gate_node import GateNode, drop_caches, gate_node, read, until

__all__ = ["gate_node"]

pytestmark = pytest.mark.root

HELLO = b"hello from the layer\n"
TREE = [
    dir("usr/"),
    dir("usr/lib/"),
    file("usr/lib/hello", HELLO, mode=0o4755, uid=7, gid=8, xattrs={"user.note": b"kept"}),
    symlink("usr/lib/greeting", "hello"),
    hardlink("usr/lib/again", "usr/lib/hello"),
    file("usr/lib/empty"),
    file("usr/other", b"another file"),
]

PROMPT = MounterSettings(late_seconds=0.2)
CHUNKWISE = MounterSettings(assumed_bandwidth=1, late_seconds=0.2)
"""With a link as slow as that, every file is too large to wait for."""


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def plain_node(node: GateNode, layer: str, path: str) -> Node:
    return node.store.tree(layer).nodes[path]


def test_first_open_of_a_missing_file_takes_one_lookup_and_no_read(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    root = node.container(layer)
    assert read(root, "usr/lib/hello") == HELLO
    counters = node.mounter.status().counters
    assert counters.lookups_file == 1
    assert counters.handed_over == 1
    assert (counters.opens, counters.reads, counters.served) == (0, 0, 0)
    assert read(node.plain_path(layer, "usr/lib/hello")) == HELLO
    assert len(node.requests()) == 1
    status = os.stat(os.path.join(root, "usr/lib/hello"))
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o4755, 7, 8)


def test_metadata_and_files_that_are_here_never_reach_the_gate(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    root = node.container(layer)
    node.plain(layer).write(plain_node(node, layer, "usr/other"), b"another file")
    assert sorted(os.listdir(os.path.join(root, "usr/lib"))) == ["again", "empty", "greeting", "hello"]
    assert os.readlink(os.path.join(root, "usr/lib/greeting")) == "hello"
    assert os.stat(os.path.join(root, "usr/lib/hello")).st_size == len(HELLO)
    assert os.getxattr(os.path.join(root, "usr/lib/hello"), "user.note") == b"kept"
    assert read(root, "usr/lib/empty") == b""
    assert read(root, "usr/other") == b"another file"
    counters = node.mounter.status().counters
    assert (counters.lookups_directory, counters.lookups_file, counters.lookups_absent) == (0, 0, 0)
    assert node.requests() == []


def test_the_late_link_goes_and_the_file_stays(node: GateNode) -> None:
    node.start(settings=PROMPT)
    layer = node.add(TREE)
    root = node.container(layer)
    path = os.path.join(root, "usr/lib/hello")
    with open(path, "rb") as held:
        until(lambda: not os.path.exists(node.late_path(layer, "usr")), "the link in LATE to go")
        assert os.stat(node.plain_path(layer, "usr/lib/hello")).st_nlink == 1
        assert held.read() == HELLO
        drop_caches()
        held.seek(0)
        assert held.read() == HELLO
        assert read(path) == HELLO, "through the dentry that overlayfs kept"
    drop_caches()
    assert read(path) == HELLO, "with nothing kept at all"
    counters = node.mounter.status().counters
    assert (counters.lookups_file, counters.reads) == (1, 0)


def test_every_name_of_a_hard_link_is_handed_over(node: GateNode) -> None:
    node.start(settings=PROMPT)
    layer = node.add(TREE)
    root = node.container(layer)
    assert read(root, "usr/lib/again") == HELLO
    assert read(root, "usr/lib/hello") == HELLO
    assert len(node.requests()) == 1


def test_a_name_that_the_layer_does_not_have_is_absent(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    for path in ("usr/lib/nothing", "usr/lib/greeting"):
        with pytest.raises(FileNotFoundError):
            os.stat(os.path.join(node.root, "gate", layer, "fs", path))
    with pytest.raises(FileNotFoundError):
        os.stat(os.path.join(node.root, "gate", "a" * 20))
    assert node.mounter.status().counters.lookups_absent == 3


def test_first_opens_in_one_directory_do_not_queue(node: GateNode) -> None:
    node.start(settings=MounterSettings(concurrent_requests=32, neighbour_bytes=0))
    contents = {f"usr/lib/f{number}": noise(100, number) for number in range(20)}
    layer = node.add([file(name, content) for name, content in contents.items()])
    root = node.container(layer)
    node.fault("hold")
    opens = {name: node.background(lambda name=name: read(root, name)) for name in contents}  # type: ignore[misc]
    # All of them have asked before one has got a byte.
    until(lambda: len(node.requests()) == 20, "20 requests at a time")
    assert not any(future.done() for future in opens.values())
    node.mend("hold")
    assert {name: future.result() for name, future in opens.items()} == contents


def test_a_walk_that_has_the_layer_to_itself_looks_up_its_top_and_the_file_alone(node: GateNode) -> None:
    node.start()
    names = [f"a/b/c/d/{number}" for number in range(5)]
    root = node.container(node.add([file(name, name.encode()) for name in names]))
    assert read(root, names[0]) == names[0].encode()
    assert node.mounter.status().counters.lookups_directory == 6, "the layer, fs, a, b, c, d"
    for name in names[1:]:
        assert read(root, name) == name.encode()
    counters = node.mounter.status().counters
    assert (counters.lookups_directory, counters.lookups_file) == (10, 5)


def test_a_walk_beside_another_one_has_directories_of_its_own(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=600, neighbour_bytes=0))
    names = [f"a/{number}" for number in range(6)]
    root = node.container(node.add([file(name, name.encode()) for name in names]))
    assert read(root, names[0]) == names[0].encode()
    node.fault("hold")
    opens = [node.background(lambda name=name: read(root, name)) for name in names[1:]]  # type: ignore[misc]
    until(lambda: node.mounter.status().counters.lookups_file == 6, "all of them, at the same time")
    node.mend("hold")
    assert [future.result() for future in opens] == [name.encode() for name in names[1:]]


def test_reads_of_large_files_do_not_queue(node: GateNode) -> None:
    node.start(settings=MounterSettings(assumed_bandwidth=1, concurrent_requests=64, wait_seconds=600))
    contents = {f"f{number}": noise(300_000, number) for number in range(20)}
    layer = node.add([file(name, content) for name, content in contents.items()])
    root = node.container(layer)
    node.fault("hold")
    reads = {name: node.background(lambda name=name: read(root, name)) for name in contents}  # type: ignore[misc]
    # The kernel's own limit is 12 read-ahead requests a mount.
    until(lambda: len(node.requests()) == 20, "20 requests at a time")
    node.mend("hold")
    assert {name: future.result() for name, future in reads.items()} == contents


def test_many_opens_of_one_file_make_one_request(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    roots = [node.container(layer), node.container(layer)]
    node.fault("hold")
    opens = [node.background(lambda root=root: read(root, "usr/lib/hello")) for root in roots * 4]  # type: ignore[misc]
    until(lambda: node.mounter.status().counters.lookups_file >= 1, "a lookup")
    node.mend("hold")
    assert [future.result() for future in opens] == [HELLO] * 8
    assert len(node.requests()) == 1


def test_a_failing_source_gives_eio_and_the_next_open_works_when_it_does(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=0.5))
    layer = node.add(TREE)
    root = node.container(layer)
    node.fault("fail")
    with pytest.raises(OSError, match="Input/output error") as failed:
        read(root, "usr/lib/hello")
    assert failed.value.errno == errno.EIO
    node.mend("fail")
    assert read(root, "usr/lib/hello") == HELLO
    assert read(root, "usr/other") == b"another file"


def test_a_source_that_is_silent_gives_eio_in_the_end(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=0.3))
    layer = node.add(TREE)
    root = node.container(layer)
    node.fault("hold")
    with pytest.raises(OSError, match="Input/output error"):
        read(root, "usr/lib/hello")
    node.mend("hold")
    until(lambda: os.path.exists(node.plain_path(layer, "usr/lib/hello")), "the fetch that went on")
    assert read(root, "usr/lib/hello") == HELLO


def test_wrong_bytes_never_reach_a_reader(node: GateNode) -> None:
    node.start(settings=MounterSettings(wait_seconds=0.5, neighbour_bytes=0))
    # Noise does not compress: a wrong byte of the blob is a wrong byte of the file, and not of the padding.
    layer = node.add([file("small", noise(3000)), file("pieces", noise(300_000))], chunk_size=100_000)
    root = node.container(layer)
    node.fault("corrupt")
    for name in ("small", "pieces"):
        with pytest.raises(OSError, match="Input/output error"):
            read(root, name)
        assert not os.path.exists(node.plain_path(layer, name))
    node.mend("corrupt")
    assert read(root, "small") == noise(3000)
    assert read(root, "pieces") == noise(300_000)


def test_a_large_file_comes_by_chunks_and_becomes_a_plain_one(node: GateNode) -> None:
    node.start(settings=CHUNKWISE)
    content = noise(1_000_000)
    layer = node.add(
        [file("before", b"x" * 50), file("large", content), file("after", b"y")], chunk_size=65536
    )
    root = node.container(layer)
    with open(os.path.join(root, "large"), "rb", buffering=0) as large:
        assert large.seek(700_000)
        assert large.read(100) == content[700_000:700_100]
        asked = node.requests()
        assert sum(end - start for start, end in asked) < 400_000, "a jump asks for no more than is near it"
        order = list(range(0, len(content), 10_007))
        random.Random(3).shuffle(order)
        for position in order:
            large.seek(position)
            assert large.read(10_007) == content[position : position + 10_007]
        until(lambda: os.path.exists(node.plain_path(layer, "large")), "the plain file")
        assert read(node.plain_path(layer, "large")) == content
        drop_caches()
        large.seek(0)
        assert large.read(len(content)) == content, "through the file that was open all along"
    counters = node.mounter.status().counters
    assert counters.served == 1
    assert counters.handed_over == 0
    assert counters.reads > 0
    assert sum(end - start for start, end in node.requests()) < 1.1 * len(content), "no chunk came twice"


def test_a_large_file_read_in_order_takes_few_requests(node: GateNode) -> None:
    node.start(settings=CHUNKWISE)
    content = noise(4_000_000)
    layer = node.add([file("large", content)], chunk_size=65536)
    root = node.container(layer)
    assert hashlib.sha256(read(root, "large")).digest() == hashlib.sha256(content).digest()
    assert len(node.requests()) <= 12, "62 chunks, in requests that double"


def test_a_large_file_stays_readable_when_its_dentry_is_dropped(node: GateNode) -> None:
    node.start(settings=CHUNKWISE)
    content = noise(400_000)
    layer = node.add([file("large", content)], chunk_size=65536)
    root = node.container(layer)
    with open(os.path.join(root, "large"), "rb") as held:
        assert held.read(10) == content[:10]
        drop_caches()
        assert read(root, "large") == content
        held.seek(390_000)
        assert held.read() == content[390_000:]
    drop_caches()
    assert read(root, "large") == content


def test_a_large_file_that_the_background_brings_is_read_from_there(node: GateNode) -> None:
    node.start(settings=CHUNKWISE)
    content = noise(1_000_000)
    layer = node.add([file("large", content)], chunk_size=65536)
    root = node.container(layer)
    with open(os.path.join(root, "large"), "rb", buffering=0) as large:
        assert large.read(10) == content[:10]
        node.plain(layer).write(plain_node(node, layer, "large"), content)
        node.fault("fail")
        drop_caches()
        large.seek(0)
        assert b"".join(iter(lambda: large.read(65536), b"")) == content
    assert read(node.container(layer), "large") == content


def test_the_writer_that_is_first_wins(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    root = node.container(layer)
    node.fault("hold")
    opening = node.background(lambda: read(root, "usr/lib/hello"))
    until(lambda: len(node.requests()) == 1, "the request")
    assert node.plain(layer).write(plain_node(node, layer, "usr/lib/hello"), HELLO)
    inode = os.stat(node.plain_path(layer, "usr/lib/hello")).st_ino
    node.mend("hold")
    assert opening.result() == HELLO
    assert os.stat(node.plain_path(layer, "usr/lib/hello")).st_ino == inode
    counters = node.mounter.status().counters
    assert (counters.handed_over, counters.reads) == (1, 0)


def test_files_that_share_a_member_come_out_of_it(node: GateNode) -> None:
    node.start(settings=PROMPT)
    contents = {f"f{number}": noise(5000, number) for number in range(10)}
    layer = node.add([file(name, content) for name, content in contents.items()], min_chunk_size=1 << 20)
    root = node.container(layer)
    for name in ("f7", "f0", "f9"):
        assert read(root, name) == contents[name]


def test_a_member_too_large_to_hold_is_taken_apart_as_it_comes(node: GateNode) -> None:
    node.start(settings=PROMPT)
    contents = {"a": noise(6_000_000, 1), "b": noise(6_000_000, 2), "zeros": bytes(40_000_000)}
    layer = node.add(
        [file(name, content) for name, content in contents.items()],
        min_chunk_size=1 << 30,
        chunk_size=1 << 30,
    )
    root = node.container(layer)
    for name in ("b", "zeros", "a"):
        assert hashlib.sha256(read(root, name)).digest() == hashlib.sha256(contents[name]).digest()


def test_kill_9_leaves_plain_files_readable_and_the_next_mounter_mounts_again(node: GateNode) -> None:
    first = node.start()
    layer = node.add(TREE)
    root = node.container(layer)
    assert read(root, "usr/lib/hello") == HELLO
    node.kill()
    drop_caches()
    assert read(root, "usr/lib/hello") == HELLO
    with pytest.raises(OSError, match="not connected"):
        os.stat(os.path.join(node.root, "gate"))
    node.plain(layer).write(plain_node(node, layer, "usr/other"), b"another file")
    assert read(root, "usr/other") == b"another file", "it landed after the gate was gone"
    second = node.start()
    assert second.generation != first.generation
    assert os.listdir(os.path.join(node.root, "gate")) == []
    assert os.path.ismount(lazy_path(node.root, lazy_id([Meta(layer)], first.generation)))
    fresh = node.container(node.add([*TREE, file("new", b"new")]))
    assert read(fresh, "new") == b"new"
    assert node.mounter.status().counters.handed_over == 1
    assert read(root, "usr/lib/hello") == HELLO


def test_links_left_in_late_are_taken_over(node: GateNode) -> None:
    node.start(settings=MounterSettings(late_seconds=3600))
    layer = node.add(TREE)
    assert read(node.container(layer), "usr/lib/hello") == HELLO
    assert os.path.exists(node.late_path(layer, "usr/lib/hello"))
    node.kill()
    node.start(settings=PROMPT)
    until(lambda: not os.path.exists(node.late_path(layer, "")), "the links to go")


def test_the_gate_lists_nothing_and_takes_nothing(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    gate = os.path.join(node.root, "gate")
    assert os.listdir(gate) == []
    assert os.listdir(os.path.join(gate, layer, "fs", "usr")) == []
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir(os.path.join(gate, "new"))


def test_several_sources_are_tried_in_turn(node: GateNode) -> None:
    node.start()
    layer = node.add(TREE)
    node.store.add_sources(layer, [FileSource("/nowhere/blob")], [])
    assert read(node.container(layer), "usr/lib/hello") == HELLO
    assert len(node.requests()) == 2, "the newest source first, then the one that has it"


def test_waits_are_counted(node: GateNode) -> None:
    node.start(Mode.GATE, PROMPT)
    layer = node.add(TREE)
    root = node.container(layer)
    futures = [node.background(lambda name=name: read(root, name)) for name in ("usr/other", "usr/lib/hello")]  # type: ignore[misc]
    wait(futures)
    status = node.mounter.status()
    assert (status.counters.fetches, status.latency.count, status.counters.fetch_failures) == (2, 2, 0)
    assert status.counters.fetched_bytes == sum(end - start for start, end in node.requests())
    assert 0 < status.latency.p50 <= status.latency.p99 <= status.latency.max
    assert status.in_flight == 0
