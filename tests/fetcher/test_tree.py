"""The tree of a layer: what stands where, what hides what, and who is whose link."""

from __future__ import annotations

import pytest

from fetcher.errors import InvalidToc
from fetcher.nodes import Kind
from fetcher.toc import TocEntry
from tests.fetcher.toc_entries import END, chunk, entry, kinds, refused, reg, tree

# The tree's shape


def test_xattrs_that_linux_has_no_place_for_are_left_out() -> None:
    given = {"user.a": b"1", "security.capability": b"2", "com.apple.provenance": b"3", "user": b"4"}
    layer = tree(entry("d", xattrs=given), entry("s", "symlink", link_name="d", xattrs=given))
    assert layer.nodes["d"].xattrs == {"user.a": b"1", "security.capability": b"2"}
    assert layer.nodes["s"].xattrs == {"security.capability": b"2"}


def test_implied_directories_are_those_without_an_entry() -> None:
    layer = tree(
        entry("a"), reg("a/b/c"), reg("d/.wh.x", size=0), reg("e/.wh..wh..opq", size=0), reg("f", size=0)
    )
    assert sorted(layer.implied) == ["a/b", "d", "e"]


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
