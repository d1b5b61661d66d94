"""Directories without an entry in a merged tree: whose attributes they take over, and where that shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fetcher.nodes import Kind, Node
from fetcher.toc import parse_toc
from fetcher.tree import LayerTree, build_tree
from snapshotter.manual.attributes import has_plain_root, make_above, taken_over
from tests.estargz import Entry, build, dir, file, opaque, symlink, whiteout


def tree(*entries: Entry) -> LayerTree:
    layer = build(entries)
    return build_tree(parse_toc(layer.toc_json), end=len(layer.blob))


def looks(*layers: list[Entry]) -> dict[str, tuple[int, int]]:
    """Mode and owner of each directory that is laid above these layers, the lowest first."""
    return {
        node.path: (node.mode, node.uid) for node in taken_over([tree(*layer) for layer in reversed(layers)])
    }


BASE = [
    dir("a/", mode=0o700, uid=1),
    dir("a/b/", mode=0o1777, uid=2),
    symlink("s", "a"),
    symlink("t/up", "/s/./b/../b"),
    symlink("loop", "loop"),
    file("f", b"f"),
]
ROOT = (0o755, 0)
A, B = (0o700, 1), (0o1777, 2)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([dir("a/"), dir("a/b/"), file("a/b/x", b"x")], {}),
        ([file("new/x", b"x")], {}),
        ([file("a/x", b"x")], {"a": A}),
        ([file("a/b/x", b"x")], {"a": A, "a/b": B}),
        ([dir("a/"), whiteout("a/b/x")], {"a": ROOT, "a/b": B}),
        ([dir("a/b/c/")], {"a": A, "a/b": B}),
        ([file("a/b/c/x", b"x")], {"a": A, "a/b": B}),
        ([file("s/x", b"x")], {"s": A}),
        ([file("s/b/x", b"x")], {"s": A, "s/b": B}),
        ([file("t/up/x", b"x")], {"t": ROOT, "t/up": B}),
        ([file("loop/x", b"x"), file("f/x/y", b"y")], {}),
    ],
)
def test_what_a_layer_says_nothing_of(entries: list[Entry], expected: dict[str, tuple[int, int]]) -> None:
    assert looks(BASE, entries) == (expected and {"": ROOT} | expected)


def test_it_is_taken_over_from_the_next_layer_that_has_it() -> None:
    above = [file("a/x", b"x")]
    assert looks(BASE, [dir("other/")], above)["a"] == A
    assert looks(BASE, [dir("a/", mode=0o711)], above)["a"] == (0o711, 0)
    assert looks(BASE, [file("a/y", b"y")], above)["a"] == A, "through one that takes it over itself"
    assert looks(BASE, [whiteout("a")], above) == {}
    assert looks(BASE, [whiteout("a")], [file("a/b/x", b"x")]) == {}, "nor what was in it"
    assert looks(BASE, [dir("a/"), opaque("a")], [file("a/b/x", b"x")])["a/b"] == B, "as containerd has it"


@pytest.mark.parametrize(
    "cover", [file("a", b"a"), whiteout("a"), dir("a/", mode=0o711), symlink("a", "f")], ids=str
)
def test_what_a_layer_above_has_a_say_in_is_left_alone(cover: Entry) -> None:
    assert looks(BASE, [file("a/x", b"x")], [cover]) == {}


def test_an_opaque_directory_above_hides_what_is_in_it() -> None:
    cover = [dir("a/", mode=0o711), opaque("a")]
    assert looks(BASE, [file("a/b/x", b"x")], cover) == {}
    assert looks([dir("a/"), dir("a/b/", mode=0o700)], [dir("a/"), file("a/b/x", b"x")], cover) == {}


def test_the_root_is_no_layers_business() -> None:
    own = dir("./", mode=0o700, uid=5, mtime=1_500_000_000)
    assert looks([own]) == {"": ROOT}
    assert looks([own], [file("x", b"x")]) == {}, "the uppermost layer's is what would be seen"
    assert looks([file("x", b"x")], [own]) == {"": ROOT}
    (root,) = taken_over([tree(own)])
    assert root.mtime == 1_500_000_000


@pytest.mark.root
def test_the_directories_are_made_as_they_are_to_look(tmp_path: Path) -> None:
    layers = [
        tree(file("a/b/x", b"x")),
        tree(*BASE, dir("a/b/", mode=0o2751, uid=3, xattrs={"user.x": b"y"})),
    ]
    top = tmp_path / "above"
    make_above(str(top), taken_over(layers))
    assert sorted(str(path.relative_to(top)) for path in top.rglob("*")) == ["a", "a/b"]
    status = os.stat(top / "a/b")
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2751, 3, 0)
    assert os.getxattr(top / "a/b", "user.x") == b"y"
    assert has_plain_root(str(top))
    assert not has_plain_root(str(top / "a/b"))
    os.setxattr(top, "trusted.overlay.opaque", b"y")
    assert has_plain_root(str(top))
    os.setxattr(top, "user.x", b"y")
    assert not has_plain_root(str(top))


def test_nothing_of_the_layers_is_changed() -> None:
    layers = [tree(file("a/b/x", b"x")), tree(*BASE, opaque("a/b"))]
    before = [node.mode for node in layers[0].nodes.values()]
    assert not any(node.opaque for node in taken_over(layers))
    assert [node.mode for node in layers[0].nodes.values()] == before
    assert layers[1].nodes["a/b"].opaque
    assert all(isinstance(node, Node) and node.kind is Kind.DIRECTORY for node in taken_over(layers))
