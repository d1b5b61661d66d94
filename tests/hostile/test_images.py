"""A layer whose author means harm: what it makes us read, keep in memory, and write."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.errors import FetchError, FormatError, InvalidToc, StoreError, VerificationError
from fetcher.nodes import Chunk, Kind, Node
from fetcher.opening import fetch_toc, open_layer
from fetcher.plain import PlainLayer
from fetcher.progress import Field, Progress
from fetcher.store import LayerStore, RegistrySource
from fetcher.stream import LayerStream
from fetcher.toc import ENTRY_LIMIT, Toc, TocEntry, parse_toc
from fetcher.tree import LayerTree, build_tree
from mounter.errors import MountFailed
from mounter.meta import MetaForm, ensure_meta, release_meta
from mounter.mountinfo import mounts_below
from tests.estargz import Layer, build, dir, file, footer_bytes, symlink
from tests.fetcher.memory_blob import MemoryBlob
from tests.fetcher.planted import Planted, planted
from tests.fetcher.toc_entries import END, entry, reg

SOURCE: Final = RegistrySource("good.io/app:latest")
REPOSITORY: Final = str(Path(__file__).parents[2])


async def go_on(_count: int) -> None:
    """The pause of somebody who need not wait for others."""


def measured(program: str) -> tuple[str, int]:
    """What a program in a process of its own prints, and the most memory that it had, in bytes."""
    finish = "\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command = [sys.executable, "-c", program + finish]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    *said, peak = ran.stdout.splitlines()
    return "\n".join(said), int(peak) << 10


class TestTablesOfContents:
    """A table of contents has to be read before any of it can be doubted."""

    PARSE = """
from fetcher.errors import InvalidToc
from fetcher.toc import parse_toc
json = {json}
assert len(json) < 256 << 20
try:
    parse_toc(json)
except InvalidToc as error:
    print(error)
"""

    @pytest.mark.parametrize(
        "json",
        [
            """b'{"version":1,"entries":[' + b'{"name":"","type":""},' * 10_000_000 + b'{}]}'""",
            """b'{"version":1,"entries":[' + b'{"name":"","type":"chunk"},' * 9_000_000 + b'{}]}'""",
            """b'{"version":1,"entries":[{"name":"a","type":"dir","xattrs":{'"""
            """ + b'"user.a":"",' * 20_000_000 + b'"user.a":""}}]}'""",
            """b'{"version":1,"entries":' + b'[' * 200_000_000""",
        ],
        ids=["ten million entries", "chunks", "xattrs", "brackets"],
    )
    def test_one_with_too_much_in_it_is_refused_before_it_is_decoded(self, json: str) -> None:
        said, peak = measured(self.PARSE.format(json=json))
        assert "the table of contents" in said
        assert peak < 1 << 30  # the JSON itself, twice while it is made here; decoded it is 5 GB

    def test_one_of_many_bytes_and_few_entries_is_taken(self) -> None:
        names = ["n" * 250 + str(number) for number in range(100_000)]
        entries = b",".join(b'{"name":"%s","type":"dir"}' % name.encode() for name in names)
        json = b'{"version":1,"entries":[' + entries + b"]}"
        assert len(json) > 22 * ENTRY_LIMIT
        assert len(parse_toc(json).entries) == len(names)

    UNPACK = """
import os, zlib, anyio
from fetcher.errors import FetchError
from fetcher.opening import fetch_toc
from tests.estargz import footer_bytes
from tests.fetcher.memory_blob import MemoryBlob
packer = zlib.compressobj(9, zlib.DEFLATED, -15)
block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
bomb = b"\\x1f\\x8b\\x08" + bytes(7) + block * 20
async def open_one():
    try:
        await fetch_toc(MemoryBlob(bomb + footer_bytes(0)), size=None, promised=None)
    except FetchError as error:
        print(error)
async def main():
    async with anyio.create_task_group() as tasks:
        for _ in range(4 * os.cpu_count()):
            tasks.start_soon(open_one)
anyio.run(main)
"""

    def test_many_bombs_at_a_time_are_unpacked_a_few_at_a_time(self) -> None:
        said, peak = measured(self.UNPACK)
        processors = os.cpu_count() or 1
        assert said.count("table of contents") == 4 * processors
        assert peak < (processors + 2) * (256 << 20)  # at once they would take 4 times it

    @pytest.mark.anyio
    @pytest.mark.parametrize("size", [(64 << 20) + 1, 200 << 20])
    async def test_one_too_large_to_be_real_is_not_fetched(self, size: int) -> None:
        class Large(MemoryBlob):
            async def tail(self, length: int) -> tuple[bytes, int]:
                return (await super().tail(length))[0], size + 51

        blob = Large(bytes(1000) + footer_bytes(0))
        with pytest.raises(InvalidToc, match="even compressed"):
            await fetch_toc(blob, size=None, promised=None)
        assert blob.sent == len(blob.data)

    @pytest.mark.anyio
    async def test_a_footer_that_points_at_itself(self) -> None:
        body = bytes(5000)
        for offset in (len(body), len(body) + 50, (1 << 64) - 1):
            with pytest.raises(FormatError, match="outside the layer"):
                await fetch_toc(MemoryBlob(body + footer_bytes(offset)), size=None, promised=None)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the layer's, in which nothing may appear."""
    directory = tmp_path / "outside"
    directory.mkdir()
    yield directory
    assert os.listdir(directory) == []


class TestSymlinksInTheWay:
    """The tree has no file below a symlink. Should the disk have one, nothing is written through it."""

    @pytest.mark.parametrize(
        ("path", "where"), [("a/b", "a"), ("a/c/b", "a"), ("a/c/b", "a/c"), ("a/c/d/b", "a/c")]
    )
    def test_no_file_is_linked_through_one(
        self, tmp_path: Path, outside: Path, path: str, where: str
    ) -> None:
        layer = planted(tmp_path, file(path, b"content"))
        link = tmp_path / "fs" / where
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
        with pytest.raises(StoreError, match=path):
            layer.write()

    def test_a_link_to_a_directory_of_the_layer_is_no_better(self, tmp_path: Path) -> None:
        layer = planted(tmp_path, file("a/b", b"content"), dir("other/"))
        (tmp_path / "fs" / "other").mkdir()
        (tmp_path / "fs" / "a").symlink_to("other")
        with pytest.raises(StoreError, match="a/b"):
            layer.write()
        assert os.listdir(tmp_path / "fs" / "other") == []

    def test_no_directory_is_taken_for_one_either(self, tmp_path: Path, outside: Path) -> None:
        layer = planted(tmp_path, dir("a/"), dir("a/b/"), symlink("a/c", "x"))
        (tmp_path / "fs" / "a").symlink_to(outside)
        with pytest.raises(StoreError, match="in a directory's place"):
            layer.complete()

    def test_a_link_in_the_place_of_the_file_is_not_followed(self, tmp_path: Path, outside: Path) -> None:
        layer = planted(tmp_path, file("a", b"content"))
        (tmp_path / "fs" / "a").symlink_to(outside / "a")
        layer.write()  # somebody was first
        assert layer.plain.drop_unverified() == 0 or not (tmp_path / "fs" / "a").exists()

    @pytest.mark.parametrize("form", MetaForm)
    def test_meta_is_made_where_nobody_else_is(self, tmp_path: Path, outside: Path, form: MetaForm) -> None:
        """Even of a tree that no table of contents can give, nothing comes to lie elsewhere."""
        link = Node("a", Kind.SYMLINK, target=str(outside))
        child = Node("a/b", Kind.REGULAR, size=1, chunks=(Chunk(0, 0, 0, 1, bytes(32)),))
        tree = LayerTree({"": Node("", Kind.DIRECTORY), "a": link, "a/b": child}, [], landmark=None, end=1)
        with pytest.raises((KeyError, MountFailed)):
            ensure_meta(str(tmp_path), "l" * 20, tree, form)
        assert mounts_below(str(tmp_path)) == []


_parts = st.sampled_from(
    ["a", "b", "c", "..", ".", "", "\n", "\x1b[2J", "\udcff", "e" * 255, ".wh.a", ".wh..wh..opq", "outside"]
)
_paths = st.lists(_parts, min_size=1, max_size=5).map("/".join)
_hostile = st.builds(
    entry,
    _paths | _paths.map("/".__add__),
    st.sampled_from(["dir", "dir", "symlink", "hardlink", "char", "block", "fifo"]),
    link_name=_paths | st.sampled_from(["../outside", "../../outside", "/", "a"]),
    mode=st.sampled_from([0o755, 0o6777, 0o7777777, 0]),
    dev_major=st.integers(0, 20),
    uid=st.sampled_from([0, 1000]),
) | st.builds(reg, _paths, st.integers(0, 50).map((4).__mul__))


@pytest.mark.root
@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(entries=st.lists(_hostile, min_size=1, max_size=8))
def test_whatever_a_layer_names_is_written_inside_it(entries: list[TocEntry]) -> None:
    with tempfile.TemporaryDirectory() as top:
        for name in ("outside", "plain"):
            os.mkdir(os.path.join(top, name))
        tree = _tree(entries)
        if tree is None:
            return
        plain = PlainLayer(os.path.join(top, "plain"), tree)
        plain.make_directories()
        for node in tree.regular_files():
            plain.write(node, b"some")
        plain.finish()
        kinds = {path: node.kind for path, node in tree.nodes.items()}
        assert _kinds(os.path.join(top, "plain")) == kinds
        for form in MetaForm:
            assert _kinds(ensure_meta(top, "l" * 20, tree, form)) == kinds
            release_meta(top, "l" * 20)
        assert os.listdir(os.path.join(top, "outside")) == []
        assert sorted(os.listdir(top)) == ["meta", "outside", "plain"]


def _tree(entries: list[TocEntry]) -> LayerTree | None:
    """What they make; None if they are refused, which is said in one line that speaks to no terminal."""
    refusal = ""
    try:
        return build_tree(Toc(1, entries), end=END)
    except InvalidToc as error:
        refusal = str(error)
    assert refusal.isprintable()
    return None


def _kinds(top: str) -> dict[str, Kind]:
    """Each path below a directory, by what it is, without a symlink followed."""
    found = {"": Kind.DIRECTORY}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, top)] = _kind(os.lstat(path))
    return found


def _kind(status: os.stat_result) -> Kind:
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return Kind.WHITEOUT
    return {
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFREG: Kind.REGULAR,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFCHR: Kind.CHARACTER,
        stat.S_IFBLK: Kind.BLOCK,
        stat.S_IFIFO: Kind.FIFO,
    }[stat.S_IFMT(status.st_mode)]


class TestBorrowedDigests:
    """An image may promise another image's blob digest, or another one's table of contents."""

    THEIRS = build([dir("etc/"), file("etc/passwd", b"root:x:0:0")])
    EVIL = build([dir("etc/"), file("etc/passwd", b"evil:x:0:0")])

    @pytest.fixture
    def store(self, tmp_path: Path) -> LayerStore:
        return LayerStore(str(tmp_path / "root"))

    async def open(self, store: LayerStore, blob: bytes, digest: str, promised: str) -> str:
        return await open_layer(
            store,
            MemoryBlob(blob),
            digest=digest,
            size=None,
            promised_toc_digest=promised,
            source=SOURCE,
            image=SOURCE.reference,
        )

    async def stream(self, store: LayerStore, layer: str, blob: bytes) -> None:
        plain = PlainLayer(store.fs(layer), store.tree(layer))
        progress = store.progress(layer)

        stream = LayerStream(MemoryBlob(blob), plain, progress, counter=Field.FETCHED_BACKGROUND, pause=go_on)
        try:
            await stream.run(0, plain.tree.end)
        finally:
            progress.close()

    def content(self, store: LayerStore, layer: str) -> bytes:
        return (Path(store.fs(layer)) / "etc/passwd").read_bytes()

    @pytest.mark.anyio
    async def test_one_blob_digest_with_other_content_is_another_layer(self, store: LayerStore) -> None:
        theirs = await self.open(store, self.THEIRS.blob, self.THEIRS.digest, self.THEIRS.toc_digest)
        evil = await self.open(store, self.EVIL.blob, self.THEIRS.digest, self.EVIL.toc_digest)
        assert theirs != evil
        for layer, blob in ((evil, self.EVIL.blob), (theirs, self.THEIRS.blob)):
            await self.stream(store, layer, blob)
        assert self.content(store, theirs) == b"root:x:0:0"
        assert self.content(store, evil) == b"evil:x:0:0"

    @pytest.mark.anyio
    async def test_a_right_table_of_contents_with_wrong_chunks_shows_nothing(self, store: LayerStore) -> None:
        evil = bytearray(self.EVIL.blob)
        end = _toc_offset(self.THEIRS)
        assert end == _toc_offset(self.EVIL)  # the same names and sizes
        blob = bytes(evil[:end]) + self.THEIRS.blob[end:]
        layer = await self.open(store, blob, self.THEIRS.digest, self.THEIRS.toc_digest)
        with pytest.raises(VerificationError, match="etc/passwd"):
            await self.stream(store, layer, blob)
        assert not (Path(store.fs(layer)) / "etc/passwd").exists()
        await self.stream(store, layer, self.THEIRS.blob)
        assert self.content(store, layer) == b"root:x:0:0"

    @pytest.mark.anyio
    async def test_another_images_table_of_contents_is_kept_under_neither_name(
        self, store: LayerStore
    ) -> None:
        with pytest.raises(VerificationError, match=self.THEIRS.toc_digest):
            await self.open(store, self.EVIL.blob, self.THEIRS.digest, self.THEIRS.toc_digest)
        assert store.layers() == []


def _toc_offset(layer: Layer) -> int:
    return int(layer.blob[-51:][16:32], 16)


class TestChunks:
    """A chunk says where it is, how large it becomes and what it is: each of these may be a lie."""

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("size", "inner"), [(4, 1 << 40), (1 << 40, 0), (1 << 61, 1 << 61), (4, (1 << 62) - 4)]
    )
    async def test_promises_that_nothing_keeps_take_no_memory(
        self, tmp_path: Path, size: int, inner: int
    ) -> None:
        bomb = gzip.compress(bytes(32 << 20), 9)
        digest = "sha256:" + hashlib.sha256(b"some").hexdigest()
        toc = Toc(1, [TocEntry("a", "reg", size=size, inner_offset=inner, chunk_digest=digest)])
        (tmp_path / "fs").mkdir()
        layer = Planted(tmp_path / "fs", [])
        layer.plain.tree = build_tree(toc, end=len(bomb))
        progress = Progress(str(tmp_path / "progress"))
        stream = LayerStream(
            MemoryBlob(bomb), layer.plain, progress, counter=Field.FETCHED_BACKGROUND, pause=go_on
        )
        tracemalloc.start()
        try:
            with pytest.raises(FetchError, match="'a'"):
                await stream.run(0, len(bomb))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            progress.close()
        assert peak < 24 << 20
        assert os.listdir(tmp_path / "fs") == []
