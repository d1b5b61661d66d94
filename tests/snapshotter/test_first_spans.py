"""Which requests a layer begins with."""

from __future__ import annotations

from fetcher.footer import parse_footer
from fetcher.toc import parse_toc
from fetcher.tree import LayerTree, build_tree
from snapshotter.worker import _LOOKED_UP_SPAN, _SHORT_PREFETCH, _first_spans
from tests.estargz import Entry, build, file, landmark
from tests.fetcher.streaming import noise


def _tree(*entries: Entry) -> LayerTree:
    layer = build(entries, level=1)
    end = parse_footer(layer.blob, blob_size=len(layer.blob)).toc_offset
    return build_tree(parse_toc(layer.toc_json), end=end)


def _span(tree: LayerTree, path: str) -> tuple[int, int]:
    [chunk] = tree.nodes[path].chunks
    return chunk.offset, chunk.end


FAR = file("far", noise(_LOOKED_UP_SPAN + 5000))
NEAR = file("near", noise(5000))
PASSWD, GROUP = file("etc/passwd", b"p"), file("etc/group", b"g")


def test_without_a_prefetch_range_there_is_what_is_looked_up() -> None:
    tree = _tree(GROUP, NEAR, PASSWD)
    assert _first_spans(tree) == [(_span(tree, "etc/group")[0], _span(tree, "etc/passwd")[1])]
    tree = _tree(GROUP, FAR, PASSWD)
    assert _first_spans(tree) == [_span(tree, "etc/group"), _span(tree, "etc/passwd")]
    assert _first_spans(_tree(FAR)) == []


def test_close_behind_a_short_prefetch_range_it_comes_with_that() -> None:
    tree = _tree(file("first", b"1"), landmark(), NEAR, GROUP, PASSWD, NEAR)
    assert _first_spans(tree) == [(0, _span(tree, "etc/passwd")[1])]


def test_far_behind_the_prefetch_range_it_comes_before_that() -> None:
    tree = _tree(file("first", b"1"), landmark(), FAR, GROUP, PASSWD)
    assert tree.landmark is not None
    both = (_span(tree, "etc/group")[0], _span(tree, "etc/passwd")[1])
    assert _first_spans(tree) == [both, (0, tree.landmark)]


def test_it_does_not_wait_for_a_long_prefetch_range() -> None:
    tree = _tree(file("first", noise(_SHORT_PREFETCH + 5000)), landmark(), GROUP, PASSWD)
    assert tree.landmark is not None
    both = (_span(tree, "etc/group")[0], _span(tree, "etc/passwd")[1])
    assert _first_spans(tree) == [both, (0, tree.landmark)]


def test_what_is_in_the_prefetch_range_needs_no_request_of_its_own() -> None:
    tree = _tree(GROUP, PASSWD, landmark(), NEAR)
    assert _first_spans(tree) == [(0, tree.landmark)]
