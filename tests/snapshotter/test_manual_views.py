"""What is mounted for a chain of layers, and what the commands say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fetcher.errors import NotEstargz, RegistryUnauthorized, SourceNotFound
from fetcher.store import LayerStore
from mounter.errors import MountFailed
from mounter.probe import Mode
from mounter.swap import Bind, Overlay
from snapshotter.chains import distinct, split_chain
from snapshotter.cli.exit_codes import exit_code
from snapshotter.cli.mount_progress import PlainDisplay, line
from snapshotter.cli.mounts import render
from snapshotter.errors import LayerFailed
from snapshotter.lowers import LazyLink, OrdinaryLink
from snapshotter.manual.errors import (
    KeeperFailed,
    LazyImpossible,
    MountedAlready,
    MountpointBusy,
    MountpointMissing,
    MountpointNotEmpty,
    NoSuchLayer,
    NotMounted,
    NotPermitted,
)
from snapshotter.manual.listing import ListedMount, Listing
from snapshotter.manual.messages import Notice, Progress
from snapshotter.manual.state import MountedLayer
from snapshotter.manual.views import Wanted, make_below, merged, native_view, tree_view
from tests.mounter.mounts import directory, file, tree, whiteout

A, B, C = (LazyLink(name * 20) for name in "abc")


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(str(tmp_path))


def complete(store: LayerStore, *links: LazyLink) -> None:
    for link in links:
        Path(store.directory(link.layer)).mkdir(parents=True)
        store.mark_complete(link.layer)


class TestChains:
    """Where the lazy lower begins."""

    def test_complete_layers_above_the_first_incomplete_one_are_native(self, store: LayerStore) -> None:
        complete(store, A, C)
        assert split_chain(store, [A, B, C]) == ([store.fs(A.layer)], [B, C])
        assert split_chain(store, [A, C]) == ([store.fs(A.layer), store.fs(C.layer)], [])
        assert split_chain(store, [OrdinaryLink("/o"), B]) == (["/o"], [B])

    def test_a_layer_that_comes_twice_counts_where_it_is_uppermost(self, store: LayerStore) -> None:
        complete(store, A, B, C)
        assert distinct([A, B, A, C, B]) == [A, B, C]
        assert split_chain(store, [A, B, A])[0] == [store.fs(A.layer), store.fs(B.layer)]


class TestViews:
    """Bind mounts, overlays and their options."""

    def test_a_layer_alone_is_bound_as_it_is(self, store: LayerStore) -> None:
        wanted = Wanted((A,), True, None)
        assert native_view(store, wanted) == Bind(store.fs(A.layer))
        assert tree_view(store, wanted, Mode.GATE) == Bind(f"{store.root}/gate/trees/{A.layer}/fs")
        assert tree_view(store, wanted, Mode.STUB) == Bind(f"{store.root}/gate/{A.layer}/fs")

    def test_an_image_is_an_overlay_of_distinct_layers(self, store: LayerStore) -> None:
        view = native_view(store, Wanted((A, B), False, None))
        assert view == Overlay([store.fs(A.layer), store.fs(B.layer)], {"metacopy": "off"})
        assert isinstance(view, Overlay)
        assert view.read_only

    def test_an_image_of_one_layer_has_something_below(self, store: LayerStore) -> None:
        view = native_view(store, Wanted((A,), False, None, below="/below"))
        assert view == Overlay([store.fs(A.layer), "/below"], {"metacopy": "off"})

    def test_what_lies_above_and_below_encloses_the_layers(self, store: LayerStore) -> None:
        view = native_view(store, Wanted((A, B), False, None, above="/above", below="/below"))
        assert view == Overlay(
            ["/above", store.fs(A.layer), store.fs(B.layer), "/below"], {"metacopy": "off"}
        )

    def test_a_lazy_lower_alone_is_bound(self) -> None:
        wanted = Wanted((A,), False, None)
        assert merged(wanted, ["/lazy"], turn="lazy", lazy=True) == Bind("/lazy")
        view = merged(wanted, ["/native", "/lazy"], turn="lazy", lazy=True)
        assert view == Overlay(["/native", "/lazy"], {"xino": "on", "metacopy": "off"})

    def test_what_is_writable_copies_up_whole_and_may_change_its_lower_directories(self) -> None:
        view = merged(Wanted((A,), True, "/dir/upper"), ["/lower"], turn="native")
        assert isinstance(view, Overlay)
        assert not view.read_only
        assert view.options == {
            "upperdir": "/dir/upper",
            "workdir": "/dir/.upper.layergate-work/native",
            "index": "off",
            "metacopy": "off",
            "xino": "on",
        }

    def test_directories_with_whiteouts_are_made_below(self, tmp_path: Path) -> None:
        below = tmp_path / "below"
        make_below(
            str(below),
            tree(directory("a"), directory("a/b"), whiteout("a/b/gone"), directory("c"), file("c/here")),
        )
        assert [str(path.relative_to(below)) for path in sorted(below.rglob("*"))] == ["a", "a/b"]
        make_below(str(tmp_path / "empty"), None)
        assert list((tmp_path / "empty").iterdir()) == []


class TestWords:
    """Exit codes and tables."""

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (SourceNotFound(""), 3),
            (NotEstargz(""), 14),
            (MountpointMissing(""), 10),
            (MountpointNotEmpty(""), 11),
            (MountedAlready(""), 12),
            (NoSuchLayer(""), 13),
            (NotPermitted(""), 15),
            (LazyImpossible(""), 16),
            (MountpointBusy(""), 17),
            (NotMounted(""), 18),
            (KeeperFailed("", code=42), 42),
            (RegistryUnauthorized("", host=""), 4),
            (MountFailed("", errno=1, target=""), 8),
            (LayerFailed("", kind="RegistryUnreachable"), 5),
            (LayerFailed("", kind="StoreError"), 7),
            (LayerFailed("", kind="MountFailed"), 8),
            (LayerFailed("", kind="WorkerDied"), 9),
            (LayerFailed("", kind="annotations"), 9),
        ],
    )
    def test_exit_codes(self, error: Exception, code: int) -> None:
        assert exit_code(error) == code

    def test_a_line_of_progress(self) -> None:
        shown = line(Progress(12_300_000, 98_000_000, 812, 19_000, 5_200_000))
        assert shown == "12.3 of 98.0 MB, 812 of 19000 files, 5.2 MB/s, 16 s left"
        assert line(Progress(0, 1, 0, 0, 0)) == "0.0 of 0.0 MB, 0 of 0 files, 0.0 MB/s"

    def test_a_notice_is_a_line_of_its_own(self) -> None:
        out = io.StringIO()
        display = PlainDisplay(out)
        display.show(Progress(0, 1, 0, 0, 0))
        display.show(Notice("the registry is gone"))
        assert out.getvalue() == "layergate: the registry is gone\n"

    def test_the_table_fits_80_columns(self) -> None:
        from rich.console import Console

        mounts = [
            ListedMount(
                mountpoint="/srv/a/rather/long/directory/name/where/somebody/mounts/images",
                source=f"registry.example.com:5000/team/{name}@sha256:{'0' * 64}",
                state=name,
                alone=alone,
                rw=rw,
                keeper=1,
                waiting=waiting,
                since="2025-01-01T00:00:00+00:00",
                layers=[MountedLayer("a" * 20, f"sha256:{'1' * 64}")],
                bytes_done=1,
                bytes_total=3,
                files_done=1,
                files_total=3,
            )
            for name, alone, rw, waiting in (
                ("lazy", True, None, None),
                ("native", False, "/upper", None),
                ("orphaned", False, None, None),
                ("lazy", False, None, "/proc"),
            )
        ]
        console = Console(width=80, file=io.StringIO(), record=True)
        console.print(render(Listing(mounts)))
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= 80
        for word in ("lazy", "native", "orphaned", "33 %", "busy", "rw", "ro", "111111111111"):
            assert word in text
