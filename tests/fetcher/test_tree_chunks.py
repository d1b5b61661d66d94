"""The chunks of files and the members that hold them."""

from __future__ import annotations

import hashlib

import pytest

from fetcher.toc import TocEntry
from tests.fetcher.toc_entries import END, SOME, chunk, digest, entry, refused, reg, tree


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


# Files verified by their own digest: legacy stargz, containers/storage


def test_digest_of_the_file_where_its_one_chunk_has_none() -> None:
    layer = tree(
        reg("a", 10, 4, chunk_digest="", digest=digest(b"a")),
        reg("b", 20, 4, chunk_digest=digest(b"b"), digest=SOME),
        reg("c", 30, 8, chunk_size=4, chunk_digest=digest(b"c"), digest=SOME),
        chunk("c", 40, 4, chunk_digest=digest(b"d")),
        entry("empty", "reg"),
    )
    found = [piece.digest for path in "abc" for piece in layer.nodes[path].chunks]
    assert found == [hashlib.sha256(text).digest() for text in (b"a", b"b", b"c", b"d")]


def test_file_of_several_chunks_has_a_digest_for_each() -> None:
    first = reg("a", 10, 8, chunk_digest="", digest=SOME, chunk_size=4)
    refused("without a sha256 digest", first, chunk("a", 20, 4, chunk_digest=digest(b"2")))
    refused("without a sha256 digest", reg("a", 10, 8, chunk_size=4), chunk("a", 20, 4, chunk_digest=""))
    refused("without a sha256 digest", reg("b", 20, 4, chunk_digest="", digest=""))


def test_digest_of_the_file_does_not_stand_for_a_part_of_it() -> None:
    refused("chunks of 'a'", reg("a", 10, 8, chunk_digest="", digest=SOME, chunk_size=4))
