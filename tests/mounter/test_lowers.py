"""Lazy lowers with real mounts: the facts of overlayfs that everything else stands on."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import AbstractContextManager

import pytest

from fetcher.nodes import Kind
from mounter.errors import MountFailed, SteeringAttribute
from mounter.lowers import (
    Directory,
    Meta,
    Part,
    forget_released,
    lazy_id,
    lazy_lowers,
    lazy_path,
    needed_room,
    release_lazy_lower,
    released_lowers,
)
from mounter.meta import release_meta
from mounter.mountinfo import mounts_below
from mounter.syscalls import detach, mount, mount_tmpfs
from tests.mounter.mounts import (
    LazyNode,
    counting_gate,
    device,
    directory,
    file,
    read,
    symlink,
    whiteout,
)
from tests.mounter.namespace import Namespace


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 31, 32, 127])
def test_room_leaves_the_two_highest_bits_of_an_inode_number_free(count: int) -> None:
    total = count + needed_room(count)
    width = total.bit_length()  # floor(log2(F)) + 1, as overlayfs counts
    assert count >> (width - 2) == 0
    assert total + 3 <= 500


def test_a_single_file_system_needs_no_room() -> None:
    assert needed_room(1) == 0


def test_an_id_depends_on_the_parts_their_order_their_kind_and_the_gate() -> None:
    chains: list[tuple[list[Part], str]] = [
        ([Meta("a"), Meta("b")], "g1"),
        ([Meta("b"), Meta("a")], "g1"),
        ([Meta("a"), Directory("b")], "g1"),
        ([Meta("a"), Meta("b")], "g2"),
    ]
    assert len({lazy_id(parts, generation) for parts, generation in chains}) == len(chains)


def failing() -> AbstractContextManager[object]:
    """The open of a file that could not be fetched: an error, and never that it does not exist."""
    return pytest.raises(OSError, match=os.strerror(errno.ELOOP))


@pytest.mark.root
class TestData:
    """Where a file's bytes come from, and when."""

    def test_a_file_that_is_nowhere_fails_and_is_read_natively_once_it_lands(self, node: LazyNode) -> None:
        node.add("l1", directory("usr"), file("usr/bin"))
        merged = node.container([node.lazy(Meta("l1"))])
        for _ in range(2):
            with failing():
                read(merged, "usr/bin")
        node.land("l1", "usr/bin")
        assert read(merged, "usr/bin") == b"hello"

    def test_plain_comes_before_the_gate_and_the_gate_before_late(self, node: LazyNode) -> None:
        node.add("l1", file("one"), file("two"), file("three"))
        for place, names in (
            ("layers", ["one"]),
            ("gate", ["one", "two"]),
            ("late", ["one", "two", "three"]),
        ):
            for name in names:
                node.land("l1", name, place.ljust(5)[:5].encode(), place=place)
        lower = node.lazy(Meta("l1"))
        assert read(lower, "one") == b"layer"
        assert read(lower, "two") == b"gate "
        assert read(lower, "three") == b"late "

    def test_an_empty_file_needs_no_data(self, node: LazyNode) -> None:
        node.add("l1", file("empty", 0))
        assert read(node.lazy(Meta("l1")), "empty") == b""

    def test_only_the_first_open_of_a_missing_file_asks_the_gate(self, node: LazyNode) -> None:
        node.add(
            "l1",
            directory("usr"),
            file("usr/here"),
            file("usr/missing"),
            symlink("usr/link", "here"),
            device("usr/null", Kind.CHARACTER, 1, 3),
        )
        node.land("l1", "usr/here")
        with counting_gate(node.path("gate")) as gate:
            merged = node.container([node.lazy(Meta("l1"))])
            for where, _, names in os.walk(merged):
                for name in names:
                    path = os.path.join(where, name)
                    os.lstat(path)
                    os.listxattr(path, follow_symlinks=False)
            assert os.readlink(os.path.join(merged, "usr/link")) == "here"
            assert read(merged, "usr/here") == b"hello"
            assert gate.lookups == []
            with failing():
                read(merged, "usr/missing")
            assert gate.lookups == ["l1"]
            node.land("l1", "usr/missing")
            assert read(merged, "usr/missing") == b"hello"
            assert gate.lookups == ["l1"]

    def test_files_stay_readable_and_keep_landing_after_the_gate_died(self, node: LazyNode) -> None:
        node.add("l1", file("here"), file("later"))
        node.land("l1", "here")
        with counting_gate(node.path("gate")) as gate:
            merged = node.container([node.lazy(Meta("l1"))])
            gate.stop()
            with failing():
                read(merged, "later")
            assert read(merged, "here") == b"hello"
            node.land("l1", "later")
            assert read(merged, "later") == b"hello"

    def test_a_detached_gate_goes_on_serving_the_lazy_lowers_on_it(self, node: LazyNode) -> None:
        node.add("l1", file("missing"))
        with counting_gate(node.path("gate")) as gate:
            merged = node.container([node.lazy(Meta("l1"))])
            detach(node.path("gate"))
            with failing():
                read(merged, "missing")
            assert gate.lookups == ["l1"]


@pytest.mark.root
class TestContainer:
    """A container's ordinary overlay on a lazy lower."""

    def test_changes_copy_files_up_whole_and_survive_the_swap_to_native_directories(
        self, node: LazyNode
    ) -> None:
        node.add("l1", directory("d"), file("d/changed"), file("d/moved"), file("d/gone"), file("d/kept"))
        for name in ("changed", "moved", "gone", "kept"):
            node.land("l1", f"d/{name}")
        merged = node.container([node.lazy(Meta("l1"))])
        os.chmod(os.path.join(merged, "d/changed"), 0o600)
        os.rename(os.path.join(merged, "d/moved"), os.path.join(merged, "moved"))
        os.unlink(os.path.join(merged, "d/gone"))
        assert read(node.path("c-upper"), "d/changed") == b"hello"
        assert read(node.path("c-upper"), "moved") == b"hello"

        detach(merged)
        assert node.container([node.path("layers/l1/fs")]) == merged
        assert stat.S_IMODE(os.stat(os.path.join(merged, "d/changed")).st_mode) == 0o600
        assert read(merged, "d/changed") == read(merged, "moved") == read(merged, "d/kept") == b"hello"
        assert sorted(os.listdir(os.path.join(merged, "d"))) == ["changed", "kept"]

    def test_whiteouts_and_opaque_directories_hide_what_is_below(self, node: LazyNode) -> None:
        node.add(
            "base", directory("a"), file("a/old"), file("a/kept"), directory("b"), file("b/old"), file("c")
        )
        node.add(
            "top",
            directory("a"),
            whiteout("a/old"),
            directory("b", opaque=True),
            file("b/new"),
            whiteout("c"),
        )
        for layer, path in (("base", "a/kept"), ("top", "b/new")):
            node.land(layer, path, layer.ljust(5).encode())
        merged = node.container([node.lazy(Meta("top"), Meta("base"))])
        assert sorted(os.listdir(merged)) == ["a", "b"]
        assert os.listdir(os.path.join(merged, "a")) == ["kept"]
        assert os.listdir(os.path.join(merged, "b")) == ["new"]
        assert read(merged, "a/kept") == b"base "
        assert read(merged, "b/new") == b"top  "

    def test_a_complete_layer_may_stand_natively_in_front(self, node: LazyNode) -> None:
        node.add("base", file("lower"), file("covered"))
        for layer, name in (("base", "lower"), ("base", "covered"), ("top", "covered")):
            node.land(layer, name, layer.ljust(5).encode())
        merged = node.container([node.path("layers/top/fs"), node.lazy(Meta("base"))])
        assert read(merged, "covered") == b"top  "
        assert read(merged, "lower") == b"base "

    def test_an_ordinary_layer_may_stand_among_lazy_ones(self, node: LazyNode) -> None:
        node.add("top", file("lazy"))
        node.land("top", "lazy")
        ordinary = node.path("ordinary")
        os.mkdir(ordinary)
        with open(os.path.join(ordinary, "plain"), "wb") as plain:
            plain.write(b"plain")
        merged = node.container([node.lazy(Meta("top"), Directory(ordinary))])
        assert read(merged, "lazy") == b"hello"
        assert read(merged, "plain") == b"plain"

    def test_devices_work_and_programs_run(self, node: LazyNode) -> None:
        node.add("l1", device("null", Kind.CHARACTER, 1, 3), file("program", 64, mode=0o755))
        node.land("l1", "program", b"#!/bin/sh\necho run\n".ljust(64, b"\n"))
        merged = node.container([node.lazy(Meta("l1"))])
        assert read(merged, "null") == b""
        run = subprocess.run([os.path.join(merged, "program")], capture_output=True, check=True)
        assert run.stdout == b"run\n"

    def test_hard_links_are_one_inode(self, node: LazyNode) -> None:
        linked = file("one")
        linked.links = ["two"]
        node.add("l1", linked)
        node.land("l1", "one")
        merged = node.container([node.lazy(Meta("l1"))])
        one, two = (os.stat(os.path.join(merged, name)) for name in ("one", "two"))
        assert os.path.samestat(one, two)
        assert one.st_nlink == 2
        assert read(merged, "two") == b"hello"


@pytest.mark.root
class TestInodeNumbers:
    """No two files may look like one, and all must be on one device."""

    @pytest.mark.parametrize("layers", [1, 2, 3, 4, 8, 40])
    def test_files_of_different_layers_differ_on_one_device(self, node: LazyNode, layers: int) -> None:
        for number in range(layers):
            node.add(f"l{number}", directory("lib"), file(f"lib/{number}"))
        merged = node.container([node.lazy(*(Meta(f"l{number}") for number in range(layers)))])
        self._check(merged, layers)

    def test_also_beside_an_ordinary_directory(self, node: LazyNode) -> None:
        """One that counts its inodes from 1 as META does: another tmpfs."""
        ordinary = node.path("ordinary")
        os.mkdir(ordinary)
        mount_tmpfs(ordinary, options={})
        for name in ("fs", "lib"):
            os.mkdir(os.path.join(ordinary, name))
        os.mknod(os.path.join(ordinary, "lib/0"))
        node.add("l1", directory("lib"), file("lib/1"))
        merged = node.container([node.lazy(Meta("l1"), Directory(ordinary))])
        self._check(merged, 2)

    def test_no_file_system_made_for_room_stays_visible(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        node.add("l2", file("b"))
        path = node.lazy(Meta("l1"), Meta("l2"))
        assert [mount.target for mount in mounts_below(node.path("lazy"))] == [path]

    def test_room_left_by_a_killed_process_is_taken_away(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        node.add("l2", file("b"))
        room = lazy_path(node.root, lazy_id([Meta("l1"), Meta("l2")], "g1")) + ".room"
        os.makedirs(room)
        mount_tmpfs(room, options={})
        os.mkdir(os.path.join(room, "0"))
        mount_tmpfs(os.path.join(room, "0"), options={})
        path = node.lazy(Meta("l1"), Meta("l2"))
        assert [mount.target for mount in mounts_below(node.path("lazy"))] == [path]
        assert not os.path.exists(room)

    @staticmethod
    def _check(merged: str, count: int) -> None:
        found = [os.stat(merged), os.stat(os.path.join(merged, "lib"))]
        with os.scandir(os.path.join(merged, "lib")) as entries:
            for entry in entries:
                found.append(os.stat(entry.path))
                assert entry.inode() == found[-1].st_ino
        assert len(found) == count + 2
        assert len({status.st_dev for status in found}) == 1
        assert len({status.st_ino for status in found}) == len(found)


@pytest.mark.root
class TestRelease:
    """What a container stands on may be detached under it."""

    def test_a_container_goes_on_working_without_the_mount_points(self, node: LazyNode) -> None:
        node.add("l1", file("opened"), file("new"), file("changed"))
        node.add("l2", file("below"))
        node.land("l1", "opened")
        lower = node.lazy(Meta("l1"), Meta("l2"))
        merged = node.container([lower])
        assert read(merged, "opened") == b"hello"
        release_lazy_lower(node.root, os.path.basename(lower))
        for layer in ("l1", "l2"):
            release_meta(node.root, layer)
        assert [mount.target for mount in mounts_below(node.root)] == [merged]
        for layer, name in (("l1", "new"), ("l1", "changed"), ("l2", "below")):
            node.land(layer, name)
        os.chmod(os.path.join(merged, "changed"), 0o600)
        assert sorted(os.listdir(merged)) == ["below", "changed", "new", "opened"]
        assert read(merged, "new") == read(merged, "below") == read(merged, "changed") == b"hello"

    def test_releasing_leaves_nothing_and_may_be_repeated(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        lower = node.lazy(Meta("l1"))
        for _ in range(2):
            release_lazy_lower(node.root, os.path.basename(lower))
            release_meta(node.root, "l1")
        assert mounts_below(node.root) == []
        forget_released(node.root, set)
        assert os.listdir(node.path("lazy")) == ["lock"]
        assert os.listdir(node.path("meta")) == []

    def test_what_a_lower_was_made_of_is_known_for_as_long_as_a_mount_names_it(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        node.add("l2", file("b"))
        one, other = (os.path.basename(node.lazy(Meta(layer))) for layer in ("l1", "l2"))
        assert released_lowers(node.root) == []
        release_lazy_lower(node.root, one)
        release_lazy_lower(node.root, other)
        assert lazy_lowers(node.root) == []
        assert {lower.id: lower.parts for lower in released_lowers(node.root)} == {
            one: (Meta("l1"),),
            other: (Meta("l2"),),
        }
        forget_released(node.root, lambda: [one])
        assert [lower.id for lower in released_lowers(node.root)] == [one]
        assert node.lazy(Meta("l1")) == node.path("lazy", one)
        release_lazy_lower(node.root, one)
        forget_released(node.root, list)
        assert released_lowers(node.root) == []
        forget_released(node.path("nowhere"), list)

    def test_releasing_what_never_was_is_no_error(self, scratch: str) -> None:
        release_lazy_lower(scratch, "none")
        release_meta(scratch, "none")
        assert os.listdir(scratch) == []

    def test_a_lower_may_be_mounted_again_after_its_release(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        node.land("l1", "a")
        lower = node.lazy(Meta("l1"))
        release_lazy_lower(node.root, os.path.basename(lower))
        assert node.lazy(Meta("l1")) == lower
        assert read(lower, "a") == b"hello"


@pytest.mark.root
class TestRecords:
    """What any process can tell about the lazy lowers that are there."""

    def test_the_same_parts_are_mounted_once(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        assert node.lazy(Meta("l1")) == node.lazy(Meta("l1"))
        assert len(mounts_below(node.path("lazy"))) == 1

    def test_another_gate_gets_a_lower_of_its_own(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        assert node.lazy(Meta("l1"), generation="g1") != node.lazy(Meta("l1"), generation="g2")

    def test_two_processes_that_want_the_same_mount_it_once(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        node.add("l2", file("b"))
        code = (
            "import sys; from mounter.lowers import *; "
            "print(mount_lazy_lower(sys.argv[1], [Meta('l1'), Meta('l2')], 'g1'))"
        )
        running = [
            subprocess.Popen([sys.executable, "-c", code, node.root], stdout=subprocess.PIPE)
            for _ in range(4)
        ]
        answers = {process.communicate()[0] for process in running}
        assert [process.returncode for process in running] == [0] * 4
        assert len(answers) == 1
        assert len(mounts_below(node.path("lazy"))) == 1

    def test_records_tell_parts_and_generation(self, node: LazyNode) -> None:
        ordinary = node.path("ordinary")
        os.mkdir(ordinary)
        node.add("l1", file("a"))
        path = node.lazy(Meta("l1"), Directory(ordinary), generation="g7")
        (found,) = lazy_lowers(node.root)
        assert found.path == path
        assert found.parts == (Meta("l1"), Directory(ordinary))
        assert found.generation == "g7"
        assert found.mounted

    def test_a_record_whose_mount_is_gone_says_so_and_can_be_mounted_again(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        path = node.lazy(Meta("l1"))
        detach(path)
        assert [lower.mounted for lower in lazy_lowers(node.root)] == [False]
        assert node.lazy(Meta("l1")) == path
        assert [lower.mounted for lower in lazy_lowers(node.root)] == [True]

    def test_a_record_cut_short_is_left_out(self, node: LazyNode) -> None:
        os.mkdir(node.path("lazy"))
        with open(node.path("lazy", "abc.json"), "w") as record:
            record.write('{"generation": "g')
        assert lazy_lowers(node.root) == []

    def test_there_are_none_without_a_directory(self, scratch: str) -> None:
        assert lazy_lowers(scratch) == []


@pytest.mark.root
class TestRefusals:
    def test_a_lower_without_parts_cannot_be(self, node: LazyNode) -> None:
        with pytest.raises(ValueError, match="at least one layer"):
            node.lazy()

    def test_meta_has_to_be_there(self, node: LazyNode) -> None:
        with pytest.raises(MountFailed) as caught:
            node.lazy(Meta("never"))
        assert caught.value.errno == errno.ENOENT
        assert caught.value.target.startswith(node.path("lazy"))

    def test_nothing_can_be_mounted_over_a_dead_gate(self, node: LazyNode) -> None:
        node.add("l1", file("a"))
        with counting_gate(node.path("gate")) as gate:
            gate.stop()
            with pytest.raises(MountFailed) as caught:
                node.lazy(Meta("l1"))
        assert caught.value.errno == errno.ENOTCONN

    def test_a_directory_that_would_read_other_images_is_refused(self, node: LazyNode) -> None:
        """Such xattrs come from an image's tar archive, and name another image's file by its layer key."""
        node.land("secret", "key", b"secret")
        ordinary = node.path("ordinary")
        os.makedirs(os.path.join(ordinary, "etc"))
        path = os.path.join(ordinary, "etc/mine")
        with open(path, "wb") as mine:
            mine.truncate(6)
        os.setxattr(path, "trusted.overlay.metacopy", b"")
        os.setxattr(path, "trusted.overlay.redirect", b"/secret/fs/key")
        node.add("l1", file("a"))
        with pytest.raises(SteeringAttribute) as caught:
            node.lazy(Meta("l1"), Directory(ordinary))
        assert caught.value.path == path
        assert [mount.target for mount in mounts_below(node.path("lazy"))] == []


@pytest.mark.root
class TestPropagation:
    """Who else sees our mounts, and for how long."""

    @pytest.fixture
    def shared(self, scratch: str) -> LazyNode:
        """A node whose directory is a shared mount, as everything is below systemd."""
        mount(scratch, scratch, "none", flags=_MS_BIND)
        mount("none", scratch, "none", flags=_MS_SHARED)
        return LazyNode(scratch)

    def test_a_namespace_that_gets_our_events_sees_a_mount_come_and_go(self, shared: LazyNode) -> None:
        with Namespace("slave") as other:
            shared.add("l1", file("a"))
            path = shared.lazy(Meta("l1"))
            assert other.sees(path)
            release_lazy_lower(shared.root, os.path.basename(path))
            release_meta(shared.root, "l1")
            assert not other.sees(path)
            assert not other.sees(shared.path("meta/l1"))

    def test_a_namespace_copied_later_lets_go_of_them_too(self, shared: LazyNode) -> None:
        shared.add("l1", file("a"))
        path = shared.lazy(Meta("l1"))
        with Namespace("slave") as other:
            assert other.sees(path)
            release_lazy_lower(shared.root, os.path.basename(path))
            assert not other.sees(path)

    def test_a_namespace_without_our_events_keeps_its_copy_until_the_mount_point_goes(
        self, node: LazyNode
    ) -> None:
        node.add("l1", file("a"))
        path = node.lazy(Meta("l1"))
        with Namespace("private") as other:
            detach(path)
            assert other.sees(path)
            os.rmdir(path)
            assert not other.sees(path)
            release_meta(node.root, "l1")
            assert not other.sees(node.path("meta/l1"))


_MS_BIND, _MS_SHARED = 1 << 12, 1 << 20
