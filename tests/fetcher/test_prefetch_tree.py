"""The part of a tree that brings the prefetch range is right in that part."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.footer import parse_footer
from fetcher.nodes import Member
from fetcher.toc import Toc, parse_toc
from fetcher.tree import LayerTree, build_tree, prefetch_tree
from tests.estargz import Entry, Layer, build, dir, file, landmark, no_landmark, symlink
from tests.fetcher.streaming import noise


def table(layer: Layer) -> tuple[Toc, int]:
    return parse_toc(layer.toc_json), parse_footer(layer.blob, blob_size=len(layer.blob)).toc_offset


def described(members: list[Member]) -> list[object]:
    return [
        (
            member.offset,
            member.end,
            [
                (msgspec.structs.astuple(node)[:-2], msgspec.structs.astuple(chunk))
                for node, chunk in member.pieces
            ],
        )
        for member in members
    ]


def in_range(tree: LayerTree) -> list[object]:
    assert tree.landmark is not None
    return described([member for member in tree.members if member.offset < tree.landmark])


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=12),
    mark=st.integers(0, 12),
    chunk_size=st.integers(300, 4000),
    min_chunk_size=st.sampled_from([0, 700, 5000]),
    also=st.integers(0, 13),
)
def test_it_has_what_the_whole_tree_has(
    sizes: list[int], mark: int, chunk_size: int, min_chunk_size: int, also: int
) -> None:
    entries: list[Entry] = [
        file(f"d{n % 2}/f{n % 8}", noise(size, n), mode=0o600 + n, uid=n, mtime=n)
        for n, size in enumerate(sizes)
    ]
    entries.insert(mark, landmark())
    toc, end = table(
        build(
            [dir("d0/"), symlink("l", "d0"), *entries], chunk_size=chunk_size, min_chunk_size=min_chunk_size
        )
    )
    path = f"d{also % 2}/f{also}"
    whole, part = build_tree(toc, end=end), prefetch_tree(toc, end=end, also=[path, "nothing/here"])
    assert part is not None
    assert part.landmark == whole.landmark
    assert in_range(part) == in_range(whole)
    node = whole.nodes.get(path)
    if node is not None and len(node.chunks) == 1:
        [wanted], [found] = node.chunks, part.nodes[path].chunks
        assert (found.offset, found.end) == (wanted.offset, wanted.end)
        assert (found.inner_offset, found.digest) == (wanted.inner_offset, wanted.digest)


@pytest.mark.parametrize("entries", [[file("a", b"a")], [no_landmark(), file("a", b"a")]])
def test_without_a_prefetch_range_there_is_none(entries: list[Entry]) -> None:
    toc, end = table(build(entries))
    assert prefetch_tree(toc, end=end) is None


def test_it_takes_less_than_the_whole() -> None:
    entries = [file("a", b"a"), landmark(), *(file(f"d/{number}", b"x") for number in range(100))]
    toc, end = table(build(entries))
    part = prefetch_tree(toc, end=end)
    assert part is not None
    assert sorted(part.nodes) == ["", "a"]
