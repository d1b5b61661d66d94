"""Exchanging what is mounted on a directory, in place: in mountinfo, and for those who are inside."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest

from mounter.errors import MountFailed
from mounter.swap import Bind, Overlay, View, mount_view, mounted_inside, mounts_on, swap_view, topmost
from mounter.syscalls import detach, mount, unmount
from tests.mounter.gate_node import read
from tests.mounter.namespace import Namespace

pytestmark = pytest.mark.root

_MS_BIND, _MS_SHARED, _MS_REC = 1 << 12, 1 << 20, 1 << 14


class Place:
    """A mountpoint, and two trees to be mounted on it."""

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        self.target = f"{scratch}/target"
        self.kept: list[list[int]] = []
        for name in ("target", "old", "new", "low", "upper", "work1", "work2"):
            os.mkdir(f"{scratch}/{name}")
        for name in ("old", "new"):
            os.mkdir(f"{scratch}/{name}/sub")
            for path in ("file", "sub/file"):
                with open(f"{scratch}/{name}/{path}", "w", encoding="ascii") as file:
                    file.write(name)

    def bind(self, name: str) -> Bind:
        return Bind(f"{self.scratch}/{name}")

    def overlay(self, name: str, work: str = "") -> Overlay:
        options: dict[str, str | None] = {"metacopy": "off"}
        if work:
            options |= {
                "upperdir": f"{self.scratch}/upper",
                "workdir": f"{self.scratch}/{work}",
                "index": "off",
            }
        return Overlay([f"{self.scratch}/{name}", f"{self.scratch}/low"], options)

    def keep(self, ids: Sequence[int]) -> None:
        self.kept.append(list(ids))


@pytest.fixture
def place(scratch: str) -> Place:
    return Place(scratch)


VIEWS = ["bind", "overlay"]


def view(place: Place, kind: str, name: str) -> View:
    return place.bind(name) if kind == "bind" else place.overlay(name)


class TestMounting:
    """One view."""

    @pytest.mark.parametrize("kind", VIEWS)
    def test_its_id_is_told_before_it_is_seen(self, place: Place, kind: str) -> None:
        seen: list[int] = []

        def keep(ids: Sequence[int]) -> None:
            place.keep(ids)
            seen.append(len(mounts_on(place.target)))

        mount_view(view(place, kind, "old"), place.target, keep)
        (found,) = mounts_on(place.target)
        assert (place.kept, seen) == ([[found.id]], [0])
        assert {"ro", "nosuid", "nodev"} <= set(found.options)
        assert read(place.target, "sub/file") == b"old"
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{place.target}/made")

    def test_a_bind_mount_leaves_out_what_is_mounted_inside(self, place: Place) -> None:
        mount("tmpfs", f"{place.scratch}/old/sub", "tmpfs")
        mount_view(place.bind("old"), place.target, place.keep)
        assert read(place.target, "sub/file") == b"old"

    def test_a_writable_overlay_writes_to_its_upper_directory(self, place: Place) -> None:
        mount_view(place.overlay("old", "work1"), place.target, place.keep)
        assert "nosuid" not in topmost(place.target).options
        os.chmod(f"{place.target}/file", 0o600)
        assert read(place.scratch, "upper/file") == b"old", "copied up whole"

    @pytest.mark.parametrize("kind", VIEWS)
    def test_a_failure_names_the_mountpoint_and_mounts_nothing(self, place: Place, kind: str) -> None:
        with pytest.raises(MountFailed, match=f"cannot mount on {place.target}: ") as raised:
            mount_view(view(place, kind, "none"), place.target, place.keep)
        assert (raised.value.errno, raised.value.target) == (errno.ENOENT, place.target)
        assert mounts_on(place.target) == []


class TestSwapping:
    """Two views, one after the other."""

    @pytest.mark.parametrize("beneath", [True, False])
    @pytest.mark.parametrize("after", VIEWS)
    @pytest.mark.parametrize("before", VIEWS)
    def test_new_lookups_see_the_new_one_and_those_inside_go_on(
        self, place: Place, before: str, after: str, beneath: bool
    ) -> None:
        mount_view(view(place, before, "old"), place.target, place.keep)
        old = topmost(place.target)
        inside = os.open(f"{place.target}/sub", os.O_RDONLY)
        with open(f"{place.target}/file", "rb") as opened:
            assert swap_view(view(place, after, "new"), place.target, place.keep, beneath=beneath) is beneath
            new = topmost(place.target)
            assert read(place.target, "file") == read(place.target, "sub/file") == b"new"
            assert opened.read() == b"old"
            with open(os.open("file", os.O_RDONLY, dir_fd=inside), "rb") as later:
                assert later.read() == b"old"
        os.close(inside)
        here = [new.id] if beneath else [new.id, old.id]
        assert {mount.id for mount in mounts_on(place.target)} == set(here)
        assert place.kept[-1] == here
        for _ in here:
            unmount(place.target)
        assert mounts_on(place.target) == []

    def test_both_are_told_before_the_second_is_there(self, place: Place) -> None:
        mount_view(place.overlay("old"), place.target, place.keep)
        swap_view(place.overlay("new"), place.target, place.keep)
        (old,), (first, new), (last,) = place.kept
        assert (first, last) == (old, new)

    def test_what_was_written_is_there_and_what_is_open_goes_on_being_written(self, place: Place) -> None:
        mount_view(place.overlay("old", "work1"), place.target, place.keep)
        with (
            open(f"{place.target}/made", "wb", buffering=0) as made,
            open(f"{place.target}/file", "r+b", buffering=0) as changed,
        ):
            made.write(b"before")
            changed.write(b"O")
            assert swap_view(place.overlay("new", "work2"), place.target, place.keep)
            made.write(b" and after")
            changed.write(b"L")
        assert read(place.target, "made") == b"before and after"
        assert read(place.target, "file") == b"OLd"
        assert read(place.target, "sub/file") == b"new"

    def test_a_failure_leaves_what_was_there(self, place: Place) -> None:
        mount_view(place.bind("old"), place.target, place.keep)
        before = mounts_on(place.target)
        with pytest.raises(MountFailed, match="cannot swap what is mounted on"):
            swap_view(place.overlay("none"), place.target, place.keep)
        assert mounts_on(place.target) == before
        assert read(place.target, "file") == b"old"

    def test_a_swap_is_seen_in_namespaces_that_get_our_events(self, place: Place) -> None:
        """On a shared parent, systemd's default."""
        mount(place.scratch, place.scratch, "none", flags=_MS_BIND)
        mount("none", place.scratch, "none", flags=_MS_SHARED | _MS_REC)
        mount_view(place.bind("old"), place.target, place.keep)
        with Namespace("slave") as other:
            elsewhere = f"{other.root}{place.target}"
            assert read(elsewhere, "file") == b"old"
            assert swap_view(place.bind("new"), place.target, place.keep)
            assert read(place.target, "file") == read(elsewhere, "file") == b"new"
            unmount(place.target)
            assert os.listdir(elsewhere) == []

    def test_what_is_mounted_inside_is_found(self, place: Place) -> None:
        mount_view(place.bind("old"), place.target, place.keep)
        assert mounted_inside(place.target) == []
        mount("tmpfs", f"{place.target}/sub", "tmpfs")
        assert mounted_inside(place.target) == [f"{place.target}/sub"]
        detach(f"{place.target}/sub")

    def test_without_a_mount_there_is_no_topmost_one(self, place: Place) -> None:
        with pytest.raises(OSError, match="nothing is mounted there"):
            topmost(place.target)
