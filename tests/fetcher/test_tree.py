"""The tree of a layer: every rule about names, kinds and chunks, and no way round one."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.errors import InvalidToc
from fetcher.nodes import Kind, Node
from fetcher.toc import Toc, TocEntry, parse_toc
from fetcher.tree import DEPTH_LIMIT, NAME_LIMIT, PATH_LIMIT, LayerTree, build_tree
from tests import estargz
from tests.estargz import build

END = 1_000_000


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


SOME = digest(b"some")


def entry(name: str, type: str = "dir", **fields: Any) -> TocEntry:
    return TocEntry(name=name, type=type, **fields)


def reg(name: str, offset: int = 0, size: int = 4, **fields: Any) -> TocEntry:
    return TocEntry(name=name, type="reg", size=size, offset=offset, **{"chunk_digest": SOME, **fields})


def chunk(name: str, offset: int, chunk_offset: int, chunk_size: int = 0, **fields: Any) -> TocEntry:
    fields = {"chunk_digest": SOME, "chunk_offset": chunk_offset, "chunk_size": chunk_size, **fields}
    return TocEntry(name=name, type="chunk", offset=offset, **fields)


def tree(*entries: TocEntry, end: int = END) -> LayerTree:
    return build_tree(Toc(version=1, entries=list(entries)), end=end)


def refused(match: str, *entries: TocEntry, end: int = END) -> None:
    with pytest.raises(InvalidToc, match=match):
        tree(*entries, end=end)


def kinds(layer: LayerTree) -> dict[str, Kind]:
    return {path: node.kind for path, node in layer.nodes.items()}


# Names


@pytest.mark.parametrize(
    "name",
    ["a/b", "/a/b", "./a/b", "a//b", "//a/b", "///a/b", "a/./b", "a/b/", "a/x/../b", "../a/b", "/../../a/b",
     "../../../../a/b", "a/../../a/b", "./../a/b", "a/b/.", "x/../../a/b//."],
)  # fmt: skip
def test_names_are_normalised_and_stay_inside(name: str) -> None:
    layer = tree(entry(name))
    assert list(layer.nodes) == ["", "a", "a/b"]
    assert layer.nodes["a/b"].path == "a/b"


@pytest.mark.parametrize("name", ["", "/", ".", "./", "..", "../..", "/..", "//", "a/..", "a/../../.."])
def test_names_of_the_root(name: str) -> None:
    layer = tree(entry(name, mode=0o40700, uid=7))
    assert list(layer.nodes) == [""]
    assert (layer.nodes[""].mode, layer.nodes[""].uid) == (0o700, 7)


@pytest.mark.parametrize(
    "name",
    ["..a", "...", "a..", ".a", "a.", "-", "~", "a\nb", "\n", " ", "a b", "\t", "\x7f", "\\", "*", "…", "a:b",
     "\udcff\udcfe", "café", "cafe\u0301", "%2e%2e", "\u202e"],
)  # fmt: skip
def test_odd_names_are_names(name: str) -> None:
    assert list(tree(entry(name)).nodes) == ["", name]
    assert list(tree(entry(f"a/{name}")).nodes) == ["", "a", f"a/{name}"]


def test_names_that_differ_in_normal_form_alone_are_two() -> None:
    assert len(tree(entry("café"), entry("cafe\u0301")).nodes) == 3


def test_zero_byte() -> None:
    refused("zero byte", entry("a\0b"))
    refused("zero byte", reg("a"), entry("b", "hardlink", link_name="a\0"))


def test_name_that_cannot_be_encoded() -> None:
    refused("cannot be encoded", entry("a\ud800"))
    refused("cannot be encoded", entry("a", "symlink", link_name="\ud800"))
    refused("cannot be encoded", entry("a", xattrs={"user.\ud800": b""}))


@pytest.mark.parametrize("name", ["a" * NAME_LIMIT, "é" * (NAME_LIMIT // 2) + "a", "\udcff" * NAME_LIMIT])
def test_longest_name(name: str) -> None:
    for path in (name, f"{name}/b", f"b/{name}/{name}"):
        assert path in tree(entry(path)).nodes
    for path in (name + "a", f"{name}a/b", f"b/{name}a/{name}"):
        refused("more than 255 bytes", entry(path))


def test_longest_path() -> None:
    parts = PATH_LIMIT // 101
    path = "/".join(["a" * 100] * parts)
    assert path in tree(entry(path)).nodes
    longest = path + "/" + "b" * (PATH_LIMIT - len(path) - 1)
    assert len(longest) == PATH_LIMIT
    assert longest in tree(entry(longest)).nodes
    refused("bytes, more than", entry(longest + "b"))


def test_what_normalises_to_a_short_path_may_be_long() -> None:
    assert "b" in tree(entry("a/../" * 5000 + "b")).nodes


def test_deepest_path() -> None:
    path = "/".join(["a"] * DEPTH_LIMIT)
    assert path in tree(entry(path)).nodes
    refused("parts", entry(path + "/a"))


def test_few_entries_cannot_imply_directories_without_bound() -> None:
    deep = "/".join(["d" * 12] * 250)
    refused("have no entry", *(entry(f"{number}/{deep}") for number in range(2000)))


def test_hard_link_target_is_normalised_too() -> None:
    layer = tree(reg("a/b"), entry("c", "hardlink", link_name="../..//a/./b"))
    assert layer.nodes["c"] is layer.nodes["a/b"]


# The tree's shape


def test_empty_toc_has_a_root() -> None:
    layer = tree()
    assert list(layer.nodes) == [""]
    root = layer.nodes[""]
    assert (root.kind, root.mode, root.uid, root.gid, root.mtime) == (Kind.DIRECTORY, 0o755, 0, 0, 0)
    assert (layer.members, layer.landmark, layer.end) == ([], None, END)
    assert layer.children("") == []


def test_implicit_parents() -> None:
    layer = tree(reg("a/b/c"))
    assert kinds(layer) == {
        "": Kind.DIRECTORY, "a": Kind.DIRECTORY, "a/b": Kind.DIRECTORY, "a/b/c": Kind.REGULAR
    }  # fmt: skip
    assert (layer.nodes["a/b"].mode, layer.nodes["a/b"].uid, layer.nodes["a/b"].mtime) == (0o755, 0, 0)


def test_parent_that_comes_later_keeps_its_attributes() -> None:
    layer = tree(reg("a/b/c"), entry("a/b", mode=0o700, uid=3), entry("a", mode=0o711))
    assert list(layer.nodes) == ["", "a", "a/b", "a/b/c"]
    assert (layer.nodes["a/b"].mode, layer.nodes["a/b"].uid, layer.nodes["a"].mode) == (0o700, 3, 0o711)


def test_children() -> None:
    layer = tree(reg("a/b"), entry("a/c/d"), entry("e"), entry("f", "hardlink", link_name="a/b"))
    assert layer.children("") == ["a", "e", "f"]
    assert sorted(layer.children("a")) == ["b", "c"]
    assert layer.children("a/c") == ["d"]
    assert layer.children("a/b") == []
    assert layer.children("nowhere") == []


@pytest.mark.parametrize(
    "file",
    [reg("a"), entry("a", "symlink", link_name="/etc"), entry("a", "char", dev_major=1), entry("a", "fifo"),
     entry("a", "block", dev_major=1), entry("a", "char")],
)  # fmt: skip
@pytest.mark.parametrize("below", ["a/b", "a/b/c/d", "x/../a/b"])
def test_only_directories_have_children(file: TocEntry, below: str) -> None:
    for one in (reg(below, 500), entry(below), entry(below, "symlink", link_name="/")):
        refused("which is not a directory", file, one)
        refused("which is not a directory", one, file)


def test_no_children_below_a_hard_link() -> None:
    link = entry("b", "hardlink", link_name="a")
    refused("which is not a directory", reg("a"), link, entry("b/c"))
    refused("which is not a directory", entry("b/c"), link, reg("a"))
    refused("which is not a directory", reg("a"), entry("a/b", "hardlink", link_name="a"))


@pytest.mark.parametrize("type", ["reg", "symlink", "char", "block", "fifo"])
@pytest.mark.parametrize("name", ["", "/", "..", "a/.."])
def test_root_is_a_directory(type: str, name: str) -> None:
    refused("root is a", entry(name, type, link_name="x", dev_major=1))


def test_root_is_no_hard_link() -> None:
    refused("hard link|below", reg("a"), entry("/", "hardlink", link_name="a"))
    refused("hard link", entry("/", "hardlink", link_name="/"))


@pytest.mark.parametrize("type", ["", "REG", "socket", "file", "Dir", "whiteout", "x" * 5000])
def test_unknown_type(type: str) -> None:
    with pytest.raises(InvalidToc, match="unknown type") as caught:
        tree(entry("a", type))
    assert len(str(caught.value)) < 200


# The last of a name wins


def test_last_of_a_name_wins() -> None:
    layer = tree(reg("a", 10, mode=0o600), reg("b", 20), reg("./a", 30, mode=0o640))
    assert layer.nodes["a"].mode == 0o640
    assert [piece.offset for piece in layer.nodes["a"].chunks] == [30]
    assert [member.offset for member in layer.members] == [20, 30]
    # What was overruled belongs to the member before it as far as ranges go.
    assert (layer.members[0].end, layer.members[1].end) == (30, END)


def test_last_wins_across_kinds() -> None:
    symlink = entry("a", "symlink", link_name="x")
    assert tree(reg("a"), symlink).nodes["a"].kind is Kind.SYMLINK
    assert tree(symlink, reg("a")).nodes["a"].kind is Kind.REGULAR
    assert kinds(tree(reg("a"), entry("/a"), reg("a/b")))["a"] is Kind.DIRECTORY


def test_chunks_of_an_overruled_file_go_with_it() -> None:
    first = [reg("a", 10, 8, chunk_size=4), chunk("a", 20, 4)]
    layer = tree(*first, reg("a", 30, 4))
    assert [piece.offset for piece in layer.nodes["a"].chunks] == [30]
    layer = tree(*first, reg("a", 30, 8, chunk_size=4), chunk("/a", 40, 4))
    assert [piece.offset for piece in layer.nodes["a"].chunks] == [30, 40]


def test_hard_link_follows_the_last_of_its_target() -> None:
    layer = tree(reg("a", 10), entry("b", "hardlink", link_name="a"), reg("a", 30))
    assert layer.nodes["b"] is layer.nodes["a"]
    assert layer.nodes["b"].chunks[0].offset == 30


def test_file_that_a_hard_link_overrules() -> None:
    layer = tree(reg("a", 10), reg("b", 20), entry("b", "hardlink", link_name="a"))
    assert layer.nodes["b"] is layer.nodes["a"]
    assert layer.nodes["a"].links == ["b"]


# Hard links


def test_chains_of_hard_links_resolve_in_any_order() -> None:
    links = [entry(str(number), "hardlink", link_name=str(number - 1)) for number in range(1, 9)]
    for entries in ([reg("0"), *links], [*reversed(links), reg("0")], [links[4], reg("0"), *links]):
        layer = tree(*entries)
        assert {layer.nodes[str(number)].path for number in range(9)} == {"0"}
        assert sorted(layer.nodes["0"].links) == [str(number) for number in range(1, 9)]
        assert [node.path for node in layer.inodes()] == ["", "0"]


def test_a_long_chain_is_walked_once() -> None:
    count = 40_000
    links = [entry(str(number), "hardlink", link_name=str(number + 1)) for number in range(count)]
    assert len(tree(*links, reg(str(count))).nodes[str(count)].links) == count


def test_hard_links_to_what_is_no_regular_file() -> None:
    layer = tree(
        entry("s", "symlink", link_name="x"), entry("f", "fifo"), entry("c", "char", dev_major=1),
        *(entry(f"{name}2", "hardlink", link_name=name) for name in "sfc"),
    )  # fmt: skip
    assert [layer.nodes[f"{name}2"].path for name in "sfc"] == ["s", "f", "c"]


@pytest.mark.parametrize("target", ["nowhere", "", "../nowhere", "a/b", ".prefetch.landmark"])
def test_dangling_hard_link(target: str) -> None:
    refused("hard link", reg("a"), reg(".prefetch.landmark", 5, 1), entry("l", "hardlink", link_name=target))


def test_cycles_of_hard_links() -> None:
    refused("itself", entry("a", "hardlink", link_name="a"))
    refused("itself", entry("a", "hardlink", link_name="./b/../a"))
    ring = [entry(str(number), "hardlink", link_name=str((number + 1) % 50)) for number in range(50)]
    refused("itself", *ring)
    refused("itself", entry("into", "hardlink", link_name="7"), *ring)


def test_hard_link_to_a_directory() -> None:
    refused("to the directory 'a'", entry("a"), entry("b", "hardlink", link_name="a"))
    refused("to the directory ''", entry(""), entry("b", "hardlink", link_name="/"))
    # A directory that is only implied is not in the layer by that name.
    refused("hard link", reg("a/x"), entry("b", "hardlink", link_name="a"))


# Whiteouts


def test_whiteout() -> None:
    layer = tree(reg("a/.wh.b", size=0))
    assert kinds(layer) == {"": Kind.DIRECTORY, "a": Kind.DIRECTORY, "a/b": Kind.WHITEOUT}
    node = layer.nodes["a/b"]
    assert (node.path, node.mode, node.major, node.minor, node.chunks) == ("a/b", 0, 0, 0, ())


def test_whiteout_at_the_root() -> None:
    assert kinds(tree(entry(".wh.b", "reg")))["b"] is Kind.WHITEOUT


@pytest.mark.parametrize(
    "same", [reg("b"), entry("b"), entry("b", "symlink", link_name="x"), entry("b/c"), reg("b/c/d")]
)
def test_whiteout_of_what_the_layer_itself_has(same: TocEntry) -> None:
    whiteout = entry(".wh.b", "reg")
    for layer in (tree(whiteout, same), tree(same, whiteout)):
        assert Kind.WHITEOUT not in kinds(layer).values()
        assert ".wh.b" not in layer.nodes
        assert "b" in layer.nodes


def test_whiteout_of_a_hard_link_in_the_layer() -> None:
    layer = tree(entry(".wh.b", "reg"), entry("b", "hardlink", link_name="a"), reg("a"))
    assert layer.nodes["b"] is layer.nodes["a"]


def test_whiteout_beside_whiteouts_below() -> None:
    for entries in ([".wh.a", "a/.wh.b"], ["a/.wh.b", ".wh.a"], [".wh.a", "a/.wh..wh..opq", "a/.wh.b"]):
        layer = tree(*(entry(name, "reg") for name in entries))
        assert kinds(layer) == {"": Kind.DIRECTORY, "a": Kind.DIRECTORY, "a/b": Kind.WHITEOUT}


def test_whiteout_by_character_device() -> None:
    layer = tree(entry("a", "char"), entry("b", "char", dev_major=0, dev_minor=1))
    assert (layer.nodes["a"].kind, layer.nodes["b"].kind) == (Kind.WHITEOUT, Kind.CHARACTER)


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh.."])
def test_whiteout_of_no_name(name: str) -> None:
    refused("whiteout of no name", entry(name, "reg"))


def test_whiteout_below_a_file() -> None:
    refused("which is not a directory", reg("a"), entry("a/.wh.b", "reg"))
    refused("which is not a directory", entry("a/.wh.b", "reg"), entry("a", "symlink", link_name="/etc"))


def test_opaque_directory() -> None:
    layer = tree(entry("a", mode=0o700), entry("a/.wh..wh..opq", "reg"), entry("b/c/.wh..wh..opq", "reg"))
    assert layer.nodes["a"].opaque
    assert layer.nodes["a"].mode == 0o700
    assert layer.nodes["b/c"].opaque
    assert not layer.nodes["b"].opaque
    assert set(layer.nodes) == {"", "a", "b", "b/c"}


def test_opaque_root() -> None:
    assert tree(entry(".wh..wh..opq", "reg")).nodes[""].opaque


def test_opaque_file() -> None:
    refused("not a directory", reg("a"), entry("a/.wh..wh..opq", "reg"))
    refused(
        "not a directory", reg("a"), entry("b", "hardlink", link_name="a"), entry("b/.wh..wh..opq", "reg")
    )


@pytest.mark.parametrize("name", [".wh..wh.plnk", ".wh..wh.aufs", ".wh..wh.orph", "a/.wh..wh.x", ".wh..wh."])
def test_aufs_leftovers_vanish(name: str) -> None:
    assert Kind.WHITEOUT not in kinds(tree(entry(name))).values()
    assert not any(".wh." in path for path in tree(entry(name)).nodes)


# Landmarks


def test_landmark_ends_the_prefetch_range_and_is_hidden() -> None:
    layer = tree(reg("a", 0), reg(".prefetch.landmark", 50, 1), reg("b", 90))
    assert layer.landmark == 50
    assert set(layer.nodes) == {"", "a", "b"}
    # The member before the landmark does not reach over it.
    assert [(member.offset, member.end) for member in layer.members] == [(0, 50), (90, END)]


def test_landmark_by_another_spelling() -> None:
    assert tree(reg("/./x/../.prefetch.landmark", 50, 1)).landmark == 50


def test_no_landmark() -> None:
    layer = tree(reg("a", 0), reg(".no.prefetch.landmark", 50, 1))
    assert layer.landmark is None
    assert set(layer.nodes) == {"", "a"}
    assert tree(reg(".prefetch.landmark", 50, 1), reg(".no.prefetch.landmark", 60, 1)).landmark is None


def test_hidden_at_the_root_only() -> None:
    names = [".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"]
    layer = tree(*(reg(f"etc/{name}", 10 * number) for number, name in enumerate(names)))
    assert layer.children("etc") == names
    assert layer.landmark is None
    assert set(tree(*(reg(name, 5) for name in names)).nodes) == {""}


@pytest.mark.parametrize("offset", [-1, END + 1, 1 << 70])
def test_landmark_outside(offset: int) -> None:
    refused("landmark", reg("a", 10), reg(".prefetch.landmark", offset, 1))


# Chunks


def test_file_of_one_chunk() -> None:
    [piece] = tree(reg("a", 10, 5, inner_offset=7)).nodes["a"].chunks
    assert (piece.offset, piece.end, piece.inner_offset, piece.file_offset, piece.size) == (10, END, 7, 0, 5)
    assert piece.digest == hashlib.sha256(b"some").digest()


def test_chunks_cover_the_file_in_order() -> None:
    layer = tree(
        reg("a", 10, 10, chunk_size=4),
        chunk("a", 20, 4, 4, chunk_digest=digest(b"2")),
        chunk("a", 30, 8, 2, chunk_digest=digest(b"3")),
        reg("b", 40),
    )
    pieces = layer.nodes["a"].chunks
    assert [(piece.file_offset, piece.size) for piece in pieces] == [(0, 4), (4, 4), (8, 2)]
    assert [(piece.offset, piece.end) for piece in pieces] == [(10, 20), (20, 30), (30, 40)]
    assert pieces[2].digest == hashlib.sha256(b"3").digest()


def test_size_zero_is_to_the_end_of_the_file() -> None:
    pieces = tree(reg("a", 10, 10, chunk_size=4), chunk("a", 20, 4)).nodes["a"].chunks
    assert [piece.size for piece in pieces] == [4, 6]


def test_chunk_entries_may_come_in_any_order() -> None:
    layer = tree(reg("a", 10, 10, chunk_size=4), chunk("a", 30, 8), chunk("a", 20, 4, 4))
    assert [piece.offset for piece in layer.nodes["a"].chunks] == [10, 20, 30]


@pytest.mark.parametrize(
    "entries",
    [
        [reg("a", 10, 10, chunk_size=4)],  # the rest is missing
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 5)],  # a gap
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 3)],  # an overlap
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 4), chunk("a", 30, 4)],  # twice
        [reg("a", 10, 10), chunk("a", 20, 4)],  # the first reaches to the end
        [reg("a", 10, 10, chunk_size=11)],
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 4, 7)],
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 4, 6), chunk("a", 30, 10)],
        [reg("a", 10, 10, chunk_size=-10)],
        [reg("a", 10, 10, chunk_size=4), chunk("a", 20, 4, -6)],
        [reg("a", 10, 10, chunk_offset=-10)],
        [reg("a", 10, 10, chunk_offset=2)],
        [reg("a", 10, 10, chunk_size=10), chunk("a", 20, -5, 5)],
    ],
)
def test_gaps_and_overlaps(entries: list[TocEntry]) -> None:
    refused("chunks of 'a'", *entries)


def test_chunks_that_do_not_lie_in_the_order_of_the_file() -> None:
    refused("order of the file", reg("a", 20, 8, chunk_size=4), chunk("a", 10, 4))
    refused("order of the file", reg("a", 10, 8, chunk_size=4), chunk("a", 10, 4))
    refused(
        "order of the file", reg("a", 10, 8, chunk_size=4, inner_offset=9), chunk("a", 10, 4, inner_offset=3)
    )


@pytest.mark.parametrize("owner", [entry("a"), entry("a", "symlink", link_name="x"), reg("b")])
def test_chunk_without_a_file(owner: TocEntry) -> None:
    refused("before the file", owner, chunk("a", 20, 0))


def test_chunk_before_its_file() -> None:
    refused("before the file", chunk("a", 20, 4), reg("a", 10, 8, chunk_size=4))
    refused(
        "before the file", reg("a", 1), entry("a", "hardlink", link_name="b"), reg("b"), chunk("a", 20, 0)
    )


@pytest.mark.parametrize("offset", [-1, END, END + 1, 1 << 70, -(1 << 70)])
def test_chunk_outside_the_layer(offset: int) -> None:
    refused("outside the layer", reg("a", offset))


@pytest.mark.parametrize("inner", [-1, 1 << 62, 1 << 63, 1 << 80])
def test_chunk_at_an_impossible_place_of_its_member(inner: int) -> None:
    refused("outside the layer", reg("a", 10, inner_offset=inner))


def test_members_that_several_files_share() -> None:
    layer = tree(
        reg("a", 10, 4), reg("b", 10, 4, inner_offset=1024), reg("c", 10, 4, inner_offset=512), reg("d", 99)
    )
    first, second = layer.members
    assert (first.offset, first.end, second.offset, second.end) == (10, 99, 99, END)
    assert [(node.path, piece.inner_offset) for node, piece in first.pieces] == [
        ("a", 0),
        ("c", 512),
        ("b", 1024),
    ]
    assert {node.chunks[0].end for node, _ in first.pieces} == {99}


@pytest.mark.parametrize("inner", [0, 1, 3])
def test_chunks_that_overlap_in_their_member(inner: int) -> None:
    refused("overlaps another", reg("a", 10, 4), reg("b", 10, 4, inner_offset=inner))
    assert tree(reg("a", 10, 4), reg("b", 10, 4, inner_offset=4)).members[0].pieces[1][0].path == "b"


def test_empty_file_has_no_chunks() -> None:
    for one in (entry("a", "reg"), entry("a", "reg", offset=-5, chunk_digest="junk", chunk_size=7)):
        layer = tree(one)
        assert layer.nodes["a"].chunks == ()
        assert layer.members == []
        assert list(layer.regular_files()) == []


@pytest.mark.parametrize("size", [-1, -(1 << 63), 1 << 63, 1 << 90])
def test_impossible_size(size: int) -> None:
    refused("size", reg("a", 10, size))


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", SOME[:-1], SOME + "0", SOME.replace("sha256", "sha512"), "SHA256" + SOME[6:], SOME[7:],
     "sha256:" + "g" * 64, "sha256:" + " " * 64, "sha256:" + "ab " * 21 + "a", "sha256:" + "٣" * 64],
)  # fmt: skip
def test_digest_that_is_none(text: str) -> None:
    refused("without a sha256 digest", reg("a", chunk_digest=text), reg("b", 99))


# Legacy TOCs: verified by the files' digests


def test_digest_of_the_file_where_no_chunk_has_one() -> None:
    layer = tree(
        reg("a", 10, 4, chunk_digest="", digest=digest(b"a")),
        reg("b", 20, 4, chunk_digest="", digest=digest(b"b")),
        entry("empty", "reg"),
    )
    assert layer.nodes["b"].chunks[0].digest == hashlib.sha256(b"b").digest()


def test_digest_of_the_file_counts_only_if_none_has_another() -> None:
    plain = reg("a", 10, 4, chunk_digest="", digest=SOME)
    refused("without a sha256 digest", plain, reg("b", 20, 4))
    refused("without a sha256 digest", plain, reg("b", 20, 4, chunk_digest="", digest=""))
    refused(
        "without a sha256 digest",
        reg("a", 10, 8, chunk_digest="", digest=SOME, chunk_size=4),
        chunk("a", 20, 4, chunk_digest=""),
    )


def test_digest_of_the_file_does_not_stand_for_a_part_of_it() -> None:
    refused("chunks of 'a'", reg("a", 10, 8, chunk_digest="", digest=SOME, chunk_size=4))


# Attributes


def test_attributes() -> None:
    layer = tree(
        reg(
            "a",
            mode=0o106755,
            uid=1000,
            gid=0xFFFFFFFE,
            modtime="2024-05-01T10:00:00Z",
            xattrs={"user.a": b"\xff"},
        )
    )
    node = layer.nodes["a"]
    assert (node.mode, node.uid, node.gid, node.mtime) == (0o6755, 1000, 0xFFFFFFFE, 1714557600)
    assert node.xattrs == {"user.a": b"\xff"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("1970-01-01T00:00:00Z", 0),
        ("2024-05-01T12:00:00+02:00", 1714557600),
        ("2024-05-01T10:00:00.999999Z", 1714557600),
        ("1960-01-01T00:00:00Z", -315619200),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("9999-12-31T23:59:59Z", 253402300799),
    ],
)
def test_modification_times(text: str, seconds: int) -> None:
    assert tree(entry("a", modtime=text)).nodes["a"].mtime == seconds


@pytest.mark.parametrize(
    "text",
    ["yesterday", "2024-05-01", "2024-05-01T10:00:00", "2024-13-01T10:00:00Z", "1714557600", "x" * 9000,
     "2024-05-01T10:00:60Z", "10000-01-01T00:00:00Z"],
)  # fmt: skip
def test_modification_times_that_are_none(text: str) -> None:
    refused("not RFC 3339", entry("a", modtime=text))


@pytest.mark.parametrize("owner", [-1, 0xFFFFFFFF, 1 << 40])
def test_impossible_owners(owner: int) -> None:
    refused("uid", entry("a", uid=owner))
    refused("gid", entry("a", gid=owner))


def test_devices() -> None:
    layer = tree(entry("c", "char", dev_major=0xFFF, dev_minor=0xFFFFF), entry("b", "block"))
    assert (layer.nodes["c"].major, layer.nodes["c"].minor) == (0xFFF, 0xFFFFF)
    assert layer.nodes["b"].kind is Kind.BLOCK
    refused("device major", entry("c", "char", dev_major=0x1000))
    refused("device minor", entry("c", "block", dev_minor=-1))


def test_symlinks() -> None:
    for target in ("x", "/etc/passwd", "../../../../etc", "a\nb", "é" * 2000, "\udcff", "."):
        assert tree(entry("a", "symlink", link_name=target)).nodes["a"].target == target
    for target in ("", "a\0b", "é" * 2048):
        refused("invalid target", entry("a", "symlink", link_name=target))


@pytest.mark.parametrize(
    "name",
    ["trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.overlay.",
     "user.overlay.opaque", "user.overlay.x"],
)  # fmt: skip
@pytest.mark.parametrize("type", ["dir", "reg", "symlink", "fifo", "char", "block"])
def test_xattrs_that_steer_overlayfs(name: str, type: str) -> None:
    refused(
        "steer overlayfs", entry("a", type, link_name="x", dev_major=1, xattrs={"user.ok": b"", name: b"y"})
    )


@pytest.mark.parametrize("name", ["", "user.a\0b", "user." + "a" * 251, "user." + "é" * 126])
def test_xattrs_with_impossible_names(name: str) -> None:
    refused("invalid name", entry("a", xattrs={name: b""}))


def test_xattrs_that_only_look_alike() -> None:
    names = ["trusted.overlays", "user.overlayfs", "trusted.x", "security.capability", "user." + "a" * 250]
    assert list(tree(entry("a", xattrs=dict.fromkeys(names, b""))).nodes["a"].xattrs) == names


def test_user_xattrs_live_on_files_and_directories_alone() -> None:
    xattrs = {"user.a": b"1", "security.b": b"2"}
    for type in ("symlink", "fifo", "char", "block"):
        node = tree(entry("a", type, link_name="x", dev_major=1, xattrs=dict(xattrs))).nodes["a"]
        assert node.xattrs == {"security.b": b"2"}
    assert tree(entry("a", xattrs=dict(xattrs))).nodes["a"].xattrs == xattrs


# From a built layer


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


# Anything at all

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
