"""What stands where in a converted layer: prioritized files, links and their targets, the landmark."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import pytest

from fetcher.convert import Compressors, LayerFormat
from tests.fetcher.converting import (
    Converted,
    Converter,
    archived,
    formats,
    hardlink,
    lazy,
    member,
    symlink,
    tar_of,
    unpacked,
)
from tests.trees import difference

LANDMARK = ".prefetch.landmark"


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    with Compressors(1) as compressors:
        yield Converter(tmp_path_factory.mktemp("convert"), compressors)


def names(converted: Converted) -> list[str]:
    """The archived names, but for the table of contents."""
    return [entry.name for entry in archived(converted.tar) if entry.name != "stargz.index.json"]


FILES = tar_of(
    member("./"),
    member("./etc/"),
    member("./etc/passwd", b"root"),
    member("./lib/libc.so.6", b"libc"),
    member("./usr/"),
    symlink("./bin", "usr/bin"),
    member("./usr/bin/"),
    member("./usr/bin/python3.11", b"python"),
    symlink("./usr/bin/python3", "python3.11"),
    symlink("./usr/bin/python", "/bin/./python3"),
    member("./usr/share/"),
    member("./usr/share/text", b"text"),
    hardlink("./usr/share/same text", "./usr/share/text"),
    hardlink("./usr/share/third", "./usr/share/same text"),
    symlink("./loop", "loop"),
    symlink("./out", "../../not/here"),
    member("./last", b"last"),
)
ALL = [entry.name for entry in archived(FILES)]


@pytest.mark.parametrize(
    ("prioritized", "first"),
    [
        (["last"], [".", "./last"]),
        (["/last", "./etc/../etc/passwd"], [".", "./last", "./etc", "./etc/passwd"]),
        (["last", "last"], [".", "./last"]),
        (["usr/share"], [".", "./usr", "./usr/share"]),
        ([""], ["."]),
        # A directory without an entry of its own.
        (["lib/libc.so.6"], [".", "./lib/libc.so.6"]),
        (
            ["usr/share/third"],
            [".", "./usr", "./usr/share", "./usr/share/text", "./usr/share/same text", "./usr/share/third"],
        ),
        (
            ["usr/bin/python3"],
            [".", "./usr", "./usr/bin", "./usr/bin/python3", "./usr/bin/python3.11"],
        ),
        (
            ["bin/python"],
            [
                ".",
                "./bin",
                "./usr",
                "./usr/bin",
                "./usr/bin/python",
                "./usr/bin/python3",
                "./usr/bin/python3.11",
            ],
        ),
        (["loop"], [".", "./loop"]),
        (["out"], [".", "./out"]),
    ],
)
def test_what_is_prioritized_comes_first_with_all_it_needs(
    convert: Converter, prioritized: list[str], first: list[str]
) -> None:
    converted = convert(FILES, prioritized=tuple(prioritized))
    rest = [name for name in ALL if name not in first]
    assert names(converted) == [*first, LANDMARK, *rest]
    assert converted.layer.missing == ()
    assert difference(lazy(converted), unpacked(FILES)) == []


@pytest.mark.parametrize("form", formats())
def test_the_prefetch_range_has_what_is_prioritized_and_nothing_else(
    convert: Converter, form: LayerFormat
) -> None:
    converted = convert(FILES, format=form, prioritized=("last", "etc/passwd"), min_chunk_size=1 << 20)
    tree = converted.tree
    assert tree.landmark is not None
    before = {node.path for node in tree.regular_files() if node.chunks[-1].end <= tree.landmark}
    assert before == {"last", "etc/passwd"}


def test_what_the_layer_does_not_have_is_passed_over_and_reported(convert: Converter) -> None:
    wanted = ("usr/none", "last", "none/at/all", "bin/none", "etc/passwd/below", "lib", LANDMARK)
    converted = convert(FILES, prioritized=wanted)
    assert converted.layer.missing == ("usr/none", "none/at/all", "bin/none", "etc/passwd/below", LANDMARK)
    # A symlink on the way to what is not there is moved; it does no harm.
    assert names(converted)[:4] == [".", "./last", "./bin", LANDMARK]


@pytest.mark.parametrize("prioritized", [None, (), ("none",)])
def test_with_nothing_to_prefetch_the_source_keeps_its_order(
    convert: Converter, prioritized: tuple[str, ...] | None
) -> None:
    converted = convert(FILES, prioritized=prioritized)
    assert names(converted) == [".no.prefetch.landmark", *ALL]
    assert converted.tree.landmark is None


def test_landmarks_of_the_source_are_written_anew(convert: Converter) -> None:
    once = convert(FILES, prioritized=("last",))
    again = convert(once.blob, prioritized=("etc/passwd",))
    assert names(again).count(LANDMARK) == 1
    assert names(again)[:4] == [".", "./etc", "./etc/passwd", LANDMARK]
    back = convert(again.blob)
    assert sorted(names(back)) == sorted([".no.prefetch.landmark", *ALL])
    assert [entry.content for entry in archived(back.tar)].count(again.toc_json) == 0


def test_a_hard_link_in_front_of_its_target_is_put_behind_it(convert: Converter) -> None:
    tar = tar_of(
        hardlink("far", "link"),
        hardlink("link", "below/target"),
        member("between", b"b"),
        member("below/"),
        member("below/target", b"t"),
    )
    converted = convert(tar)
    assert names(converted)[1:] == ["below", "below/target", "link", "far", "between"]
    assert lazy(converted)["far"].links == {"far", "link", "below/target"}


def test_hard_links_to_each_other_or_to_nothing_are_kept(convert: Converter) -> None:
    tar = tar_of(
        hardlink("a", "b"),
        hardlink("b", "a"),
        hardlink("self", "self"),
        hardlink("c", "nowhere"),
        member("d"),
    )
    converted = convert(tar, prioritized=("a", "self", "c", "d"))
    assert sorted(names(converted)) == [LANDMARK, "a", "b", "c", "d", "self"]


def test_a_long_chain_of_hard_links(convert: Converter) -> None:
    count = 3000
    links = [hardlink(str(number), str(number + 1)) for number in range(count)]
    converted = convert(tar_of(*links, member(str(count), b"end")))
    assert names(converted)[1:] == [str(number) for number in range(count, -1, -1)]


def test_a_link_keeps_the_file_that_it_was_made_to(convert: Converter) -> None:
    tar = tar_of(
        member("file", b"first", mode=0o600),
        hardlink("one", "file"),
        hardlink("two", "one"),
        member("file", b"second"),
        hardlink("three", "file"),
        hardlink("four", "two"),
    )
    converted = convert(tar)
    assert difference(lazy(converted), unpacked(tar)) == []
    assert difference(unpacked(converted.tar), unpacked(tar)) == []
    seen = {entry.name: entry.content for entry in archived(converted.tar)}
    assert (seen["one"], seen["file"]) == (b"first", b"second")


LONG = "d" * 120 + "/"


@pytest.mark.parametrize(
    ("form", "replaced", "promoted", "relinked"),
    [
        (tarfile.USTAR_FORMAT, "r", "n" * 100, "l"),
        (tarfile.USTAR_FORMAT, LONG + "r", LONG + "n" * 99, LONG + "l"),
        (tarfile.GNU_FORMAT, "r" * 150, "short", "l" * 150),
        (tarfile.GNU_FORMAT, "r", "n" * 255, "l"),
        (tarfile.PAX_FORMAT, "r" * 150, "short", "l" * 150),
        (tarfile.PAX_FORMAT, "r", LONG + "n" * 255, "l" * 255),
        (tarfile.PAX_FORMAT, "r", "ü" * 120, "l"),
    ],
)
def test_the_link_that_becomes_the_file_has_its_attributes(
    convert: Converter, form: int, replaced: str, promoted: str, relinked: str
) -> None:
    # In USTAR a link's target has at most 100 bytes.
    target = replaced if len(replaced) <= 100 or form != tarfile.USTAR_FORMAT else "r"
    tar = tar_of(
        member(target, b"content", mode=0o4750, uid=5, gid=6, uname="user", gname="group"),
        hardlink(promoted, target),
        hardlink(relinked, target),
        member(target, b"new"),
        format=form,
    )
    converted = convert(tar)
    assert difference(unpacked(converted.tar), unpacked(tar)) == []
    assert [entry.name for entry in archived(converted.tar)][1:4] == [promoted, relinked, target]
    with tarfile.open(fileobj=io.BytesIO(converted.tar)) as archive:
        info = archive.getmember(promoted)
        assert (info.uname, info.gname, info.mode, info.size) == ("user", "group", 0o4750, 7)
        assert archive.getmember(relinked).linkname == promoted


def test_a_file_in_place_of_a_directory_takes_what_was_in_it(convert: Converter) -> None:
    tar = tar_of(
        member("d/"),
        member("d/e/"),
        member("d/e/f", b"f"),
        hardlink("kept", "d/e/f"),
        symlink("d", "elsewhere"),
        member("after", b"a"),
        # In between it was a file.
        member("e/f/g", b"g"),
        member("e", b"e"),
        member("e/"),
        member("e/f/"),
    )
    converted = convert(tar)
    assert names(converted)[1:] == ["kept", "d", "after", "e", "e/f"]
    assert difference(lazy(converted), unpacked(tar)) == []


def test_global_headers_stay_where_they_are(convert: Converter) -> None:
    first = tarfile.TarInfo.create_pax_global_header({"comment": "first"})
    second = tarfile.TarInfo.create_pax_global_header({"comment": "second", "uid": "99"})
    one, two, three = (tar_of(member(name, name.encode(), uid=1))[:1024] for name in ("one", "two", "three"))
    tar = first + one + two + second + three + bytes(1024)
    plain = convert(tar)
    assert plain.tar.startswith(first)
    assert names(plain) == [".no.prefetch.landmark", "one", "two", "three"]
    assert one + two + second + three in plain.tar
    # What unpackers of images pass over changes nothing in the table of contents.
    assert [entry.uid for entry in plain.toc.entries] == [0, 1, 1, 1]
    moved = convert(tar, prioritized=("three",))
    assert moved.tar.startswith(first + three)
    assert one + two + second in moved.tar
