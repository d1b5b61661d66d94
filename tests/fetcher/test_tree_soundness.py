"""Whatever a table of contents says: a sound tree, or InvalidToc."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.errors import InvalidToc
from fetcher.nodes import Kind, Node
from fetcher.toc import ShownEntry, Toc, TocEntry, parse_shown, parse_toc
from fetcher.tree import LayerTree, build_tree
from tests import estargz
from tests.estargz import build
from tests.fetcher.toc_entries import END, SOME, entry, kinds


def test_built_layer() -> None:
    layer = build(
        [
            estargz.dir("usr/"),
            estargz.dir("usr/bin/"),
            estargz.file(
                "usr/bin/a", b"a" * 2500, mode=0o4755, uid=3, xattrs={"security.capability": b"\x01\xff"}
            ),
            estargz.symlink("bin", "usr/bin"),
            estargz.landmark(),
            estargz.hardlink("usr/bin/b", "usr/bin/a"),
            estargz.file("etc/empty"),
            estargz.chardev("dev/null", 1, 3, mode=0o666),
            estargz.fifo("run/pipe"),
            estargz.whiteout("old/gone"),
            estargz.opaque("fresh/"),
        ],
        chunk_size=1000,
        prefix="./",
    )
    toc_offset = int(layer.blob[-51:][16:32], 16)
    built = build_tree(parse_toc(layer.toc_json), end=toc_offset)
    assert kinds(built) == {
        "": Kind.DIRECTORY, "usr": Kind.DIRECTORY, "usr/bin": Kind.DIRECTORY, "usr/bin/a": Kind.REGULAR,
        "bin": Kind.SYMLINK, "usr/bin/b": Kind.REGULAR, "etc": Kind.DIRECTORY, "etc/empty": Kind.REGULAR,
        "dev": Kind.DIRECTORY, "dev/null": Kind.CHARACTER, "run": Kind.DIRECTORY, "run/pipe": Kind.FIFO,
        "old": Kind.DIRECTORY, "old/gone": Kind.WHITEOUT, "fresh": Kind.DIRECTORY,
    }  # fmt: skip
    node = built.nodes["usr/bin/a"]
    assert (node.mode, node.uid, node.links, node.size) == (0o4755, 3, ["usr/bin/b"], 2500)
    assert node.xattrs == {"security.capability": b"\x01\xff"}
    assert [piece.size for piece in node.chunks] == [1000, 1000, 500]
    assert built.landmark == built.members[-1].end
    assert built.nodes["fresh"].opaque


_parts = st.sampled_from(
    ["a", "b", "c", ".", "..", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh.", "\n", "\0", "a" * 256, "é",
     ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json", "\ud800", "\udc80"]
)  # fmt: skip
_few = st.sampled_from(["a", "b", "a/b", "a/c", "b/a", "./a", "/b", ".wh.a", "a/.wh.b", "a/.wh..wh..opq"])
_names = _few | st.lists(_parts, max_size=4).map("/".join) | st.text(max_size=4)
_numbers = st.sampled_from([0, 0, 0, 1, 4, 8, 10, 100, -1, END, 1 << 62, 1 << 64]) | st.integers()
_digests = st.sampled_from(["", SOME, SOME, "sha256:", "junk"])
_entries = st.builds(
    TocEntry,
    name=_names,
    type=st.sampled_from(["dir", "reg", "reg", "chunk", "hardlink", "symlink", "char", "block", "fifo", "x"]),
    size=_numbers,
    modtime=st.sampled_from(["", "", "2024-05-01T10:00:00Z", "x"]) | st.text(max_size=3),
    link_name=_names,
    mode=_numbers,
    uid=st.sampled_from([0, 0, 0, 1, -1, 1 << 32]),
    gid=st.sampled_from([0, 0, 0, 1, -1, 1 << 32]),
    dev_major=st.sampled_from([0, 0, 1, -1, 1 << 12]),
    dev_minor=st.sampled_from([0, 0, 1, -1, 1 << 20]),
    xattrs=st.none()
    | st.dictionaries(
        st.sampled_from(["user.a", "trusted.overlay.opaque", "", "security.x"]) | st.text(max_size=3),
        st.binary(max_size=3),
        max_size=2,
    ),
    digest=_digests,
    offset=_numbers,
    inner_offset=_numbers,
    chunk_offset=_numbers,
    chunk_size=_numbers,
    chunk_digest=_digests,
)
_likely = st.builds(
    entry,
    _few,
    st.sampled_from(["dir", "dir", "reg", "hardlink", "symlink", "char"]),
    link_name=_few,
)


def test_a_tree_keeps_nothing_of_its_toc() -> None:
    # One object that stays keeps a megabyte of memory from the system, in which it was among freed ones.
    node = {"uid": 1000, "gid": 2000, "mode": 0o100644, "modtime": "2020-01-01T00:00:01Z"}
    whole = {"type": "reg", "size": 3000, "chunkDigest": SOME, **node}
    piece = {"name": "directory/large", "type": "chunk", "chunkSize": 1000, "chunkDigest": SOME}
    entries = [
        {"name": "directory", "type": "dir", **node, "xattrs": {"user.name": "dmFsdWU="}},
        {"name": "directory/file", **whole, "offset": 500},
        {"name": "directory/large", **whole, "offset": 5000, "chunkSize": 1000},
        *({**piece, "offset": 5000 + n, "chunkOffset": n} for n in (1000, 2000)),
        {"name": "directory/symlink", "type": "symlink", "linkName": "directory/file", **node},
        {"name": "directory/hard link", "type": "hardlink", "linkName": "directory/file"},
    ]
    toc = parse_toc(json.dumps({"version": 1, "entries": entries}).encode())
    tree = build_tree(toc, end=9000)
    assert len(tree.nodes["directory/large"].chunks) == 3
    values = {id(value): value for one in toc.entries for value in _values(one)}
    kept = [values[id(value)] for one in _structs(tree) for value in _values(one) if id(value) in values]
    assert [value for value in kept if value not in ("", None) and not _is_small(value)] == []


def _structs(tree: LayerTree) -> Iterator[msgspec.Struct]:
    for node in tree.nodes.values():
        yield from (node, *node.chunks)
    yield from tree.members


def _values(struct: msgspec.Struct) -> Iterator[object]:
    for value in msgspec.structs.astuple(struct):
        yield value
        if isinstance(value, dict):
            yield from (*value, *value.values())
        elif isinstance(value, list):
            yield from value


def _is_small(value: object) -> bool:
    """Whether the interpreter has but one of it."""
    return isinstance(value, int) and -5 <= value <= 256


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=st.lists(_entries, max_size=8), end=st.integers(-1, END))
def test_arbitrary_entries_give_a_sound_tree_or_invalid_toc(entries: list[TocEntry], end: int) -> None:
    try:
        layer = build_tree(Toc(version=1, entries=entries), end=end)
    except InvalidToc:
        return
    check_soundness(layer)


@settings(max_examples=400, deadline=None)
@given(entries=st.lists(_likely, max_size=8))
def test_likely_entries_give_a_sound_tree_or_invalid_toc(entries: list[TocEntry]) -> None:
    try:
        layer = build_tree(Toc(version=1, entries=entries), end=END)
    except InvalidToc:
        return
    check_soundness(layer)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=st.lists(_entries, max_size=8) | st.lists(_likely, max_size=8))
def test_what_is_shown_of_a_tree_needs_nothing_else(entries: list[TocEntry]) -> None:
    shown = [
        ShownEntry(*msgspec.structs.astuple(one)[: len(ShownEntry.__struct_fields__)]) for one in entries
    ]
    try:
        whole = build_tree(Toc(version=1, entries=entries), end=END)
    except InvalidToc:
        return
    tree = build_tree(Toc(version=1, entries=shown), end=END)
    assert (tree.members, tree.landmark) == ([], None)
    assert tree.implied == whole.implied
    assert _shown(tree) == _shown(whole)


def _shown(tree: LayerTree) -> dict[str, tuple[object, ...]]:
    return {
        path: msgspec.structs.astuple(msgspec.structs.replace(node, chunks=()))
        for path, node in tree.nodes.items()
    }


def test_what_is_shown_is_decoded_from_the_same_bytes() -> None:
    layer = build([estargz.file("a/b", b"1" * 3000, xattrs={"user.x": b"\xff"}), estargz.symlink("c", "a")])
    end = len(layer.blob)
    whole, shown = (
        build_tree(parse_toc(layer.toc_json), end=end),
        build_tree(parse_shown(layer.toc_json), end=end),
    )
    assert whole.nodes["a/b"].chunks
    assert not shown.nodes["a/b"].chunks
    assert _shown(shown) == _shown(whole)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(entries=st.lists(_entries, max_size=8) | st.lists(_likely, max_size=8))
def test_a_toc_can_be_spent_on_its_tree(entries: list[TocEntry]) -> None:
    try:
        kept = build_tree(Toc(version=1, entries=entries), end=END)
    except InvalidToc:
        return
    toc = Toc(version=1, entries=list(entries))
    tree = build_tree(toc, end=END, spend=True)
    assert toc.entries == []
    assert (tree.landmark, tree.implied) == (kept.landmark, kept.implied)
    assert msgspec.to_builtins((tree.nodes, tree.members)) == msgspec.to_builtins((kept.nodes, kept.members))


@pytest.mark.parametrize("size", [-1, 1 << 63])
def test_a_size_that_no_file_has_is_refused_of_what_is_shown_too(size: int) -> None:
    with pytest.raises(InvalidToc, match="'a' has the size"):
        build_tree(Toc(version=1, entries=[ShownEntry("a", "reg", size)]), end=END)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=8),
    chunk_size=st.integers(1, 1500),
    min_chunk_size=st.sampled_from([0, 100, 4000]),
    legacy=st.booleans(),
)
def test_built_layers_give_a_sound_tree(
    sizes: list[int], chunk_size: int, min_chunk_size: int, legacy: bool
) -> None:
    files = [estargz.file(f"d{number % 3}/f{number}", bytes(size)) for number, size in enumerate(sizes)]
    built = build(
        files,
        chunk_size=max(sizes, default=1) or 1 if legacy else chunk_size,
        min_chunk_size=min_chunk_size,
        omit_chunk_digests=legacy,
    )
    layer = build_tree(parse_toc(built.toc_json), end=len(built.blob))
    check_soundness(layer)
    assert [node.size for node in layer.inodes() if node.kind is Kind.REGULAR] == sizes


def check_soundness(layer: LayerTree) -> None:
    seen: set[str] = set()
    for path, node in layer.nodes.items():
        parent = path.rpartition("/")[0]
        if path:
            assert parent in seen, f"{path!r} comes before its parent"
            assert layer.nodes[parent].kind is Kind.DIRECTORY
            assert not path.startswith("/")
            assert all(part not in ("", ".", "..") for part in path.split("/"))
            assert "\0" not in path
            path.encode("utf-8", "surrogateescape")
        seen.add(path)
        assert node.path == path or (path in node.links and layer.nodes[node.path] is node)
        assert path.rpartition("/")[2] in layer.children(parent) or not path
        check_node(node, layer)
    assert layer.nodes[""].kind is Kind.DIRECTORY
    assert {len(node.links) == len(set(node.links)) for node in layer.inodes()} <= {True}
    check_members(layer)


def check_node(node: Node, layer: LayerTree) -> None:
    assert 0 <= node.mode <= 0o7777
    assert not any(name.startswith(("trusted.overlay.", "user.overlay.")) for name in node.xattrs)
    position = 0
    for piece in node.chunks:
        assert node.kind is Kind.REGULAR
        assert piece.file_offset == position
        assert piece.size > 0
        assert len(piece.digest) == 32
        assert 0 <= piece.offset < piece.end <= layer.end
        assert piece.inner_offset >= 0
        position += piece.size
    assert position == (node.size if node.kind is Kind.REGULAR else 0)
    assert (node.kind is Kind.SYMLINK) == bool(node.target)
    if node.opaque:
        assert node.kind is Kind.DIRECTORY


def check_members(layer: LayerTree) -> None:
    position = 0
    pieces = 0
    for member in layer.members:
        assert position <= member.offset < member.end <= layer.end
        position = member.end
        inner = 0
        assert member.pieces
        for node, piece in member.pieces:
            assert (piece.offset, piece.end) == (member.offset, member.end)
            assert inner <= piece.inner_offset
            inner = piece.inner_offset + piece.size
            assert piece in node.chunks
            pieces += 1
    assert pieces == sum(len(node.chunks) for node in layer.inodes())
    if layer.landmark is not None:
        assert 0 <= layer.landmark <= layer.end
        assert not any(member.offset < layer.landmark < member.end for member in layer.members)
