"""The store: what a layer is, where it comes from, and that nothing of it is there by halves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fetcher.errors import FormatError, InvalidToc, StoreError, VerificationError
from fetcher.progress import Field
from fetcher.store import (
    KEY_LENGTH,
    FileSource,
    LayerRecord,
    LayerStore,
    RegistrySource,
    Source,
    boot_id,
    layer_key,
)
from fetcher.toc import toc_digest
from tests.estargz import Layer, build, file
from tests.fetcher.small_disk import fill, small_disk

LAYER = build([file("etc/passwd", b"root"), file("etc/group", b"wheel")])
TOC_OFFSET = int(LAYER.blob[-51:][16:32], 16)


def record(
    layer: Layer = LAYER, sources: list[Source] | None = None, images: list[str] | None = None
) -> LayerRecord:
    return LayerRecord(
        digest=layer.digest,
        toc_digest=layer.toc_digest,
        size=len(layer.blob),
        toc_offset=int(layer.blob[-51:][16:32], 16),
        sources=[RegistrySource("a.example/x:1")] if sources is None else sources,
        images=["a.example/x:1"] if images is None else images,
    )


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path / "root"))


@pytest.fixture
def key(store: LayerStore) -> str:
    return store.add(record(), LAYER.toc_json)


# Keys


def test_key_is_short_and_depends_on_both_digests() -> None:
    blob, toc = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    key = layer_key(blob, toc)
    assert len(key) == KEY_LENGTH == 20
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert key == layer_key(blob, toc)
    assert len({key, layer_key(toc, blob), layer_key(blob, blob), layer_key(toc, toc)}) == 4


def test_key_is_what_it_was_in_earlier_versions() -> None:
    # Directories on disk bear it.
    assert layer_key("sha256:" + "0" * 64, "sha256:" + "1" * 64) == "xnr4xzhaso4oi64brroo"


# Adding


def test_add_and_read_back(store: LayerStore, key: str) -> None:
    assert key == layer_key(LAYER.digest, LAYER.toc_digest)
    assert store.exists(key)
    assert not store.is_complete(key)
    assert store.layers() == [key]
    assert store.record(key) == record()
    assert set(store.tree(key).nodes) == {"", "etc", "etc/passwd", "etc/group"}
    assert store.tree(key).end == TOC_OFFSET
    assert store.progress(key)[Field.BYTES_TOTAL] == TOC_OFFSET
    assert os.listdir(store.fs(key)) == []
    assert store.same_boot(key)


def test_root_is_for_root_alone(store: LayerStore, key: str) -> None:
    for directory in (store.root, store.layers_directory, store.directory(key)):
        assert os.stat(directory).st_mode & 0o077 == 0
    assert os.stat(store.fs(key)).st_mode & 0o777 == 0o755


def test_nothing_is_there_at_first(store: LayerStore) -> None:
    assert store.layers() == []
    assert not store.exists("a" * 20)
    assert not store.is_complete("a" * 20)


def test_layers_lists_keys_alone(store: LayerStore, key: str) -> None:
    for name in (".new-x8f3k2aa", "lost+found", "a" * 19, "a" * 21):
        os.mkdir(os.path.join(store.layers_directory, name))
    assert store.layers() == [key]


def test_adding_again_keeps_the_files(store: LayerStore, key: str) -> None:
    with open(os.path.join(store.fs(key), "kept"), "w") as kept:
        kept.write("kept")
    store.progress(key)[Field.FILES_DONE] = 5
    assert store.add(record(), LAYER.toc_json) == key
    assert os.listdir(store.fs(key)) == ["kept"]
    assert store.progress(key)[Field.FILES_DONE] == 5
    assert store.record(key) == record()


def test_same_blob_with_another_toc_is_another_layer(store: LayerStore, key: str) -> None:
    forged = msgspec.structs.replace(record(), toc_digest=toc_digest(b'{"version":1}'))
    other = store.add(forged, b'{"version":1}')
    assert other != key
    assert set(store.tree(other).nodes) == {""}
    assert "etc/passwd" in store.tree(key).nodes


def test_no_debris_is_left(store: LayerStore, key: str) -> None:
    store.add(record(), LAYER.toc_json)
    store.mark_boot(key)
    store.mark_complete(key)
    assert os.listdir(store.layers_directory) == [key]
    assert set(os.listdir(store.directory(key))) == {
        "fs", "layer.json", "toc.json", "boot", "progress", "record.lock", "complete"
    }  # fmt: skip


# Sources


def test_sources_merge_newest_first(store: LayerStore, key: str) -> None:
    first, second = RegistrySource("a.example/x:1"), RegistrySource("b.example/y@sha256:1", plain_http=True)
    local = FileSource("/mnt/usb/blob")
    store.add(record(sources=[second], images=["b.example/y:2"]), LAYER.toc_json)
    assert store.record(key).sources == [second, first]
    assert store.record(key).images == ["a.example/x:1", "b.example/y:2"]
    store.add_sources(key, [local], ["a.example/x:1"])
    assert store.record(key).sources == [local, second, first]
    assert store.record(key).images == ["a.example/x:1", "b.example/y:2"]
    store.add_sources(key, [first], [])
    assert store.record(key).sources == [first, local, second]


def test_sources_are_not_kept_without_bound(store: LayerStore, key: str) -> None:
    for number in range(50):
        store.add_sources(key, [RegistrySource(f"a.example/x:{number}")], [])
    sources = store.record(key).sources
    assert len(sources) == 8
    assert sources[0] == RegistrySource("a.example/x:49")


def test_nothing_new_writes_nothing(store: LayerStore, key: str) -> None:
    before = os.stat(os.path.join(store.directory(key), "layer.json")).st_ino
    store.add(record(), LAYER.toc_json)
    assert os.stat(os.path.join(store.directory(key), "layer.json")).st_ino == before


# Concurrently


ADDER = """
import sys
from fetcher.store import LayerRecord, LayerStore, RegistrySource
import msgspec
root, record, toc, name, count = sys.argv[1:]
store = LayerStore(root)
with open(toc, "rb") as file:
    toc = file.read()
record = msgspec.json.decode(record, type=LayerRecord)
sys.stdin.readline()
for number in range(int(count)):
    own = f"{name}.example/x:{number}"
    one = msgspec.structs.replace(record, sources=[RegistrySource(own)], images=[own])
    print(store.add(one, toc))
"""


def start_adders(store: LayerStore, directory: Path, names: str, count: int) -> list[subprocess.Popen[str]]:
    (directory / "toc").write_bytes(LAYER.toc_json)
    arguments = [store.root, msgspec.json.encode(record()).decode(), str(directory / "toc")]
    return [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, *arguments, name, str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": os.getcwd()},
        )
        for name in names
    ]


@pytest.fixture
def adders(store: LayerStore, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    processes = start_adders(store, tmp_path, "abc", 8)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_processes_that_add_the_same_layer(store: LayerStore, adders: list[subprocess.Popen[str]]) -> None:
    for process in adders:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0].split() for process in adders]
    assert [process.returncode for process in adders] == [0, 0, 0]
    key = layer_key(LAYER.digest, LAYER.toc_digest)
    assert outputs == [[key] * 8] * 3
    assert os.listdir(store.layers_directory) == [key]
    # Nobody's addition was lost: 24 images, and the newest sources of all.
    assert len(store.record(key).images) == 24
    assert len(store.record(key).sources) == 8
    assert set(store.tree(key).nodes) == {"", "etc", "etc/passwd", "etc/group"}


def test_lock_is_held_against_other_processes(store: LayerStore, key: str) -> None:
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1])\n"
        "try:\n"
        "    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n"
        "    sys.exit(3)\n"
    )
    command = [sys.executable, "-c", program, os.path.join(store.directory(key), "lock")]
    with store.lock(key):
        assert subprocess.run(command, check=False).returncode == 3
        with store.lock(key, "record.lock"):
            pass
    assert subprocess.run(command, check=False).returncode == 0


# Damage


def test_toc_on_disk_is_not_believed(store: LayerStore, key: str) -> None:
    path = Path(store.directory(key), "toc.json")
    path.write_bytes(path.read_bytes().replace(b"passwd", b"shadow"))
    with pytest.raises(VerificationError, match="the image promises"):
        store.tree(key)


def test_toc_that_is_missing(store: LayerStore, key: str) -> None:
    os.unlink(os.path.join(store.directory(key), "toc.json"))
    with pytest.raises(StoreError, match=r"toc\.json") as caught:
        store.tree(key)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"null", b'{"digest":"\xff"}', b"\x00" * 300])
def test_record_that_is_damaged(store: LayerStore, key: str, damage: bytes) -> None:
    Path(store.directory(key), "layer.json").write_bytes(damage)
    with pytest.raises(FormatError, match=r"layer\.json is damaged"):
        store.record(key)


def test_toc_that_makes_no_tree(store: LayerStore) -> None:
    toc = b'{"version":1,"entries":[{"name":"a","type":"hardlink","linkName":"b"}]}'
    key = store.add(msgspec.structs.replace(record(), toc_digest=toc_digest(toc)), toc)
    with pytest.raises(InvalidToc, match="hard link"):
        store.tree(key)


@pytest.mark.parametrize("use", ["record", "tree", "progress", "same_boot", "mark_boot", "mark_complete"])
def test_layer_that_is_gone(store: LayerStore, key: str, use: str) -> None:
    os.rename(store.directory(key), os.path.join(store.root, "elsewhere"))
    with pytest.raises(StoreError) as caught:
        getattr(store, use)(key)
    assert caught.value.errno == errno.ENOENT
    assert store.layers() == []


def test_lock_of_a_layer_that_is_gone(store: LayerStore, key: str) -> None:
    os.rename(store.directory(key), os.path.join(store.root, "elsewhere"))
    with pytest.raises(StoreError):
        store.add_sources(key, [FileSource("/x")], [])
    lock = store.lock(key)
    with pytest.raises(StoreError), lock:
        pytest.fail("held a lock in a directory that does not exist")


# Marks


def test_completion_mark(store: LayerStore, key: str) -> None:
    store.mark_complete(key)
    assert store.is_complete(key)
    store.mark_complete(key)
    assert store.is_complete(key)


@pytest.mark.parametrize("boot", [b"", b"another boot", b"\xff\xfe"])
def test_files_of_another_boot(store: LayerStore, key: str, boot: bytes) -> None:
    Path(store.directory(key), "boot").write_bytes(boot)
    assert not store.same_boot(key)
    store.mark_boot(key)
    assert store.same_boot(key)
    assert Path(store.directory(key), "boot").read_text() == boot_id()


# A disk that is full


@pytest.mark.root
def test_full_disk_refuses_a_layer_and_keeps_no_debris(tmp_path: Path) -> None:
    with small_disk(str(tmp_path / "disk"), kilobytes=64) as disk:
        store = LayerStore(disk)
        store.create_directories()
        fill(disk)
        with pytest.raises(StoreError, match=LAYER.digest) as caught:
            store.add(record(), LAYER.toc_json)
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(store.layers_directory) == []
        os.unlink(os.path.join(disk, "ballast"))
        assert store.layers() == []
        assert set(store.tree(store.add(record(), LAYER.toc_json)).nodes) > {""}


@pytest.mark.root
def test_disk_that_fills_at_any_point_of_adding_a_layer(tmp_path: Path) -> None:
    refused = 0
    for kilobytes in range(4, 40, 4):
        with small_disk(str(tmp_path / f"disk{kilobytes}"), kilobytes=kilobytes) as disk:
            store = LayerStore(disk)
            try:
                key = store.add(record(), LAYER.toc_json)
            except StoreError:
                assert os.listdir(store.layers_directory) == []
                refused += 1
            else:
                assert set(store.tree(key).nodes) == {"", "etc", "etc/passwd", "etc/group"}
                store.progress(key)[Field.FETCHED_TOC] = 1
    assert 0 < refused < 9


@pytest.mark.root
def test_full_disk_leaves_a_layer_as_it_was(tmp_path: Path) -> None:
    with small_disk(str(tmp_path / "disk"), kilobytes=64) as disk:
        store = LayerStore(disk)
        key = store.add(record(), LAYER.toc_json)
        fill(disk)
        with pytest.raises(StoreError) as caught:
            store.add_sources(key, [FileSource("/x" * 2000)], [])
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(StoreError):
            store.mark_boot(key)
        assert store.record(key) == record()
        assert store.same_boot(key)
        # Counters have their place and never need more.
        store.progress(key)[Field.REQUESTS] = 4
        assert store.progress(key)[Field.REQUESTS] == 4
        assert not [name for name in os.listdir(store.directory(key)) if name.endswith(".tmp")]
