"""Names in a layer: normalised, within their limits, and never a way out."""

from __future__ import annotations

import pytest

from fetcher.tree import DEPTH_LIMIT, NAME_LIMIT, PATH_LIMIT
from tests.fetcher.toc_entries import entry, refused, reg, tree


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
