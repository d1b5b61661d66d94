"""From a record and an image's layers to what each layer begins with. Pure."""

from __future__ import annotations

import pytest

from fetcher.access_order import LARGE, AccessOrder, access_order, is_left_behind
from fetcher.nodes import Kind, Node
from fetcher.record import OpenedFile
from fetcher.tree import LayerTree

CHUNK = 4 << 20


def tree(*nodes: Node) -> LayerTree:
    by_path = {"": Node("", Kind.DIRECTORY)}
    for node in nodes:
        for path in (node.path, *node.links):
            for end, letter in enumerate(path):
                if letter == "/":
                    by_path.setdefault(path[:end], Node(path[:end], Kind.DIRECTORY))
            by_path[path] = node
    return LayerTree(by_path, [], landmark=None, end=0)


def file(path: str, *links: str, size: int = 10) -> Node:
    node = Node(path, Kind.REGULAR, links=list(links))
    node.size = size
    return node


def symlink(path: str, target: str) -> Node:
    return Node(path, Kind.SYMLINK, target=target)


def whiteout(path: str) -> Node:
    return Node(path, Kind.WHITEOUT)


def directory(path: str, *, opaque: bool = False) -> Node:
    return Node(path, Kind.DIRECTORY, opaque=opaque)


def ordered(layers: list[LayerTree], *paths: str) -> AccessOrder:
    return access_order([OpenedFile(path) for path in paths], layers, chunk_size=CHUNK)


def test_each_layer_gets_its_own_files_in_the_order_of_their_opens() -> None:
    layers = [tree(file("bin/sh"), file("lib/c")), tree(file("app/main"), file("app/conf"))]
    found = ordered(layers, "app/main", "lib/c", "app/conf", "bin/sh")
    assert found == AccessOrder((("lib/c", "bin/sh"), ("app/main", "app/conf")), (), ())


def test_the_uppermost_layer_that_has_a_file_provides_it() -> None:
    assert ordered([tree(file("a")), tree(file("a")), tree(file("b"))], "a").layers == ((), ("a",), ())


def test_what_a_whiteout_hides_is_unknown() -> None:
    found = ordered([tree(file("etc/a"), file("etc/b")), tree(whiteout("etc/a"))], "etc/a", "etc/b")
    assert (found.layers, found.unknown) == ((("etc/b",), ()), ("etc/a",))


def test_a_whiteout_of_a_directory_hides_all_in_it() -> None:
    layers = [tree(file("opt/x/y")), tree(whiteout("opt/x")), tree(file("opt/x/z"))]
    found = ordered(layers, "opt/x/y", "opt/x/z")
    assert (found.layers, found.unknown) == (((), (), ("opt/x/z",)), ("opt/x/y",))


def test_an_opaque_directory_hides_what_is_below_but_not_what_is_beside_it() -> None:
    layers = [tree(file("d/low"), file("e/low")), tree(directory("d", opaque=True), file("d/high"))]
    found = ordered(layers, "d/low", "d/high", "e/low")
    assert (found.layers, found.unknown) == ((("e/low",), ("d/high",)), ("d/low",))


def test_a_file_hides_a_directory_below_and_a_directory_a_file() -> None:
    layers = [tree(file("a/x"), file("b")), tree(file("a"), file("b/y"))]
    found = ordered(layers, "a/x", "a", "b/y", "b")
    assert (found.layers, found.unknown) == (((), ("a", "b/y")), ("a/x", "b"))


def test_hard_links_of_one_file_come_once_by_the_name_that_was_opened() -> None:
    layers = [tree(file("bin/perl", "bin/perl5.36")), tree(file("bin/x"))]
    assert ordered(layers, "bin/perl5.36", "bin/x", "bin/perl").layers == (("bin/perl5.36",), ("bin/x",))


def test_symlinks_are_followed_along_the_chain_into_other_layers() -> None:
    layers = [
        tree(file("usr/lib/libc.so.6"), symlink("lib", "usr/lib"), file("usr/bin/python3.11")),
        tree(symlink("usr/bin/python3", "python3.11"), symlink("srv", "/usr/bin/../bin")),
        tree(symlink("etc/alternatives/python", "../../usr/bin/python3")),
    ]
    found = ordered(layers, "lib/libc.so.6", "etc/alternatives/python", "srv/python3")
    assert found.layers == (("usr/lib/libc.so.6", "usr/bin/python3.11"), (), ())


@pytest.mark.parametrize(
    "path", ["loop", "a/b/c", "dangling", "bin", "bin/sh/x", "fifo", "up", "nowhere/else", "."]
)
def test_what_is_no_regular_file_is_unknown(path: str) -> None:
    layer = tree(
        file("bin/sh"),
        symlink("loop", "loop"),
        symlink("a", "a"),
        symlink("dangling", "gone"),
        symlink("up", "../../.."),
        Node("fifo", Kind.FIFO),
    )
    assert ordered([layer], path) == AccessOrder(((),), (path,), ())


def test_a_chain_of_symlinks_may_have_forty_of_them() -> None:
    chain = [symlink(f"l{number}", f"l{number + 1}") for number in range(41)]
    layer = tree(*chain, file("l41"))
    assert ordered([layer], "l1").layers == (("l41",),)
    assert ordered([layer], "l0").unknown == ("l0",)


def test_paths_may_lead_out_of_the_root_and_stay_in_it() -> None:
    layer = tree(symlink("l", "../../../bin/sh"), file("bin/sh"))
    assert ordered([layer], "l").layers == (("bin/sh",),)


def test_a_large_file_of_which_little_is_read_stays_behind() -> None:
    layer = tree(file("data", size=100 * CHUNK), file("next"))
    read = OpenedFile("data", 0.0, [(0, 4096), (50 * CHUNK, 50 * CHUNK + 1)])
    found = access_order([read, OpenedFile("next")], [layer], chunk_size=CHUNK)
    assert found == AccessOrder((("next",),), (), ("data",))


@pytest.mark.parametrize(
    ("size", "ranges", "left_behind"),
    [
        (100 * CHUNK, None, False),
        (100 * CHUNK, [], True),
        (100 * CHUNK, [(0, 24 * CHUNK)], True),
        (100 * CHUNK, [(0, 25 * CHUNK)], False),
        # A byte needs its whole chunk; chunks count once.
        (100 * CHUNK, [(n * CHUNK, n * CHUNK + 1) for n in range(0, 100, 4)], False),
        (100 * CHUNK, [(n, n + 1) for n in range(0, 1000, 2)], True),
        (100 * CHUNK, [(CHUNK - 1, CHUNK + 1)] * 30, True),
        (LARGE, [(0, 1)], False),
        (LARGE + 1, [(0, 1)], True),
        # What a record says of bytes that the file does not have counts for nothing.
        (100 * CHUNK, [(100 * CHUNK, 1 << 60)], True),
        (100 * CHUNK, [(0, 1 << 60)], False),
    ],
)
def test_the_rule_for_large_files(size: int, ranges: list[tuple[int, int]] | None, left_behind: bool) -> None:
    assert is_left_behind(size, ranges, chunk_size=CHUNK) is left_behind
