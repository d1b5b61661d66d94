"""What is in a layer by its tar alone."""

from __future__ import annotations

import tarfile

from fetcher.listing import Listing, clean_path
from fetcher.nodes import Kind
from fetcher.tree import LayerTree


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, size
    return made


def listed(*entries: tarfile.TarInfo) -> LayerTree:
    listing = Listing()
    for one in entries:
        listing.add(one)
    return listing.tree()


def kinds(tree: LayerTree) -> dict[str, Kind]:
    return {path: node.kind for path, node in tree.nodes.items()}


def test_each_kind_and_the_parents_that_have_no_entry() -> None:
    tree = listed(
        entry("./usr/bin/x", size=7),
        entry("usr/lib/", tarfile.DIRTYPE),
        entry("/usr/l", tarfile.SYMTYPE, "bin/x"),
        entry("dev/c", tarfile.CHRTYPE),
        entry("../dev/b", tarfile.BLKTYPE),
        entry("f", tarfile.FIFOTYPE),
    )
    assert kinds(tree) == {
        "": Kind.DIRECTORY,
        "usr": Kind.DIRECTORY,
        "usr/bin": Kind.DIRECTORY,
        "usr/bin/x": Kind.REGULAR,
        "usr/lib": Kind.DIRECTORY,
        "usr/l": Kind.SYMLINK,
        "dev": Kind.DIRECTORY,
        "dev/c": Kind.WHITEOUT,
        "dev/b": Kind.BLOCK,
        "f": Kind.FIFO,
    }
    assert tree.nodes["usr/bin/x"].size == 7
    assert tree.nodes["usr/l"].target == "bin/x"


def test_whiteouts_and_opaque_directories() -> None:
    tree = listed(
        entry("a/.wh.gone"),
        entry("a/kept"),
        entry("a/.wh.kept"),
        entry("b/.wh..wh..opq"),
        entry("c/", tarfile.DIRTYPE),
        entry("c/.wh..wh..opq"),
        entry(".wh..wh.plnk/1"),
        entry(".wh..wh.aufs"),
    )
    assert tree.nodes["a/gone"].kind is Kind.WHITEOUT
    assert tree.nodes["a/kept"].kind is Kind.REGULAR
    assert {path for path, node in tree.nodes.items() if node.opaque} == {"b", "c"}
    assert ".wh..wh.aufs" not in tree.nodes


def test_hard_links_are_one_node() -> None:
    tree = listed(
        entry("bin/a", size=3),
        entry("bin/b", tarfile.LNKTYPE, "./bin/a"),
        entry("bin/c", tarfile.LNKTYPE, "/bin/b"),
        entry("bin/d", tarfile.LNKTYPE, "bin/absent"),
    )
    assert tree.nodes["bin/c"] is tree.nodes["bin/b"] is tree.nodes["bin/a"]
    assert tree.nodes["bin/a"].links == ["bin/b", "bin/c"]
    assert "bin/d" not in tree.nodes


def test_the_last_entry_of_a_name_wins() -> None:
    tree = listed(entry("a", size=1), entry("b", size=2), entry("./a", size=3))
    assert tree.nodes["a"].size == 3
    assert list(tree.nodes) == ["", "b", "a"]


def test_estargz_s_own_files_are_hidden_at_the_root_alone() -> None:
    names = ("stargz.index.json", ".prefetch.landmark", ".no.prefetch.landmark")
    tree = listed(*map(entry, names), *(entry(f"d/{name}") for name in names))
    assert sorted(tree.nodes) == ["", "d", *sorted(f"d/{name}" for name in names)]


def test_parents_come_before_children() -> None:
    tree = listed(
        entry("z/y/x"), entry("z/", tarfile.DIRTYPE), entry("z/y/w"), entry("z/y/", tarfile.DIRTYPE)
    )
    order = list(tree.nodes)
    assert order.index("z") < order.index("z/y") < order.index("z/y/x")


def test_paths_never_lead_out() -> None:
    assert [clean_path(name) for name in ("../../etc/x", "/", "./", "a/./b//c/../d")] == [
        "etc/x",
        "",
        "",
        "a/b/d",
    ]
