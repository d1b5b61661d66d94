"""Layers that look different by themselves than where their image has them."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from fetcher.store import FileSource, LayerRecord, LayerStore
from snapshotter.lowers import LazyLink, Link, OrdinaryLink
from snapshotter.placement import why_unfit
from tests.estargz import Entry, build, dir, file, opaque, symlink, whiteout


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path / "root"))


def keep(store: LayerStore, *entries: Entry) -> LazyLink:
    """Have a layer with these entries in the store."""
    layer = build(entries)
    record = LayerRecord(
        digest=layer.digest,
        toc_digest=layer.toc_digest,
        size=len(layer.blob),
        toc_offset=len(layer.blob),
        sources=[FileSource("/nowhere")],
    )
    return LazyLink(store.add(record, layer.toc_json))


def unfit(store: LayerStore, entries: Sequence[Entry], *below: Link) -> str | None:
    return why_unfit(store, keep(store, *entries).layer, below)


PLAIN_BASE = [dir("a/"), file("a/x", b"x"), dir("b/"), symlink("s", "a"), file("f", b"f")]


def test_a_layer_with_entries_for_its_directories_fits_anywhere(store: LayerStore) -> None:
    entries = [dir("a/", mode=0o700), file("a/x", b"x"), dir("a/b/"), opaque("a/b"), whiteout("a/c")]
    assert unfit(store, entries, keep(store, dir("a/", mode=0o711, uid=1))) is None


@pytest.mark.parametrize("entry", [file("a/z", b"z"), whiteout("a/x"), opaque("a"), dir("a/b/")])
def test_implied_directories_fit_on_directories_that_look_the_same(store: LayerStore, entry: Entry) -> None:
    assert unfit(store, [entry], keep(store, *PLAIN_BASE)) is None


@pytest.mark.parametrize("entry", [file("a/z", b"z"), whiteout("a/x"), opaque("a"), dir("a/b/")])
@pytest.mark.parametrize(
    "below",
    [
        dir("a/", mode=0o1777),
        dir("a/", uid=1),
        dir("a/", gid=1),
        dir("a/", xattrs={"user.a": b"b"}),
        symlink("a", "usr"),
    ],
)
def test_implied_directories_do_not_fit_on_others(store: LayerStore, entry: Entry, below: Entry) -> None:
    found = unfit(store, [entry], keep(store, below, file("x", b"x")))
    assert found is not None
    assert "'a'" in found


def test_the_uppermost_layer_that_has_the_directory_counts(store: LayerStore) -> None:
    private, public = keep(store, dir("a/", mode=0o700)), keep(store, dir("a/"))
    nothing = keep(store, file("f", b"f"))
    entries = [file("a/z", b"z")]
    assert unfit(store, entries, nothing, public, private) is None
    assert unfit(store, entries, nothing, private, public) is not None
    assert unfit(store, entries, keep(store, whiteout("a")), private) is None
    assert unfit(store, entries, keep(store, file("a", b"a file")), private) is None
    assert unfit(store, entries, nothing) is None


def test_ordinary_layers_count_too(store: LayerStore, tmp_path: Path) -> None:
    fs = tmp_path / "fs"
    (fs / "a").mkdir(parents=True, mode=0o755)
    (fs / "f").write_bytes(b"")
    os.symlink("a", fs / "s")
    ordinary = OrdinaryLink(str(fs))
    own = os.geteuid(), os.getegid()
    assert (unfit(store, [file("a/z", b"z")], ordinary) is None) == (own == (0, 0))
    assert unfit(store, [file("f/z", b"z"), file("f/y/z", b"z")], ordinary) is None
    assert unfit(store, [file("s/z", b"z")], ordinary) is not None
    (fs / "a").chmod(0o700)
    assert unfit(store, [file("a/z", b"z")], ordinary) is not None


def test_whiteouts_do_not_fit_at_the_bottom(store: LayerStore) -> None:
    assert unfit(store, [dir("a/"), whiteout("a/x"), file("a/y", b"y")]) is not None
    assert unfit(store, [file("p/q", b"a directory without an entry, and nothing to take after")]) is None
    assert unfit(store, [dir("a/"), opaque("a")]) is None


def test_more_implied_directories_than_are_looked_up(store: LayerStore) -> None:
    entries = [file(f"d{number}/f", b"f") for number in range(1001)]
    assert unfit(store, entries) is None
    assert "too many" in str(unfit(store, entries, keep(store, *PLAIN_BASE)))


def test_the_shape_is_kept_and_read_again(store: LayerStore) -> None:
    layer = keep(store, file("a/z", b"z"), whiteout("b")).layer
    from_tree = store.shape(layer)
    store.keep_shape(layer, store.tree(layer))
    with open(os.path.join(store.directory(layer), "toc.json"), "wb") as toc:
        toc.write(gzip.compress(b"no longer looked at"))
    assert store.shape(layer) == from_tree
    assert (from_tree.implied, from_tree.whiteouts) == (["a"], True)
