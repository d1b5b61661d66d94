"""META trees: every attribute of a layer, and none of its bytes."""

from __future__ import annotations

import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import pytest

from fetcher.nodes import Kind
from fetcher.tree import LayerTree
from mounter.erofs import FILE_LIMIT
from mounter.errors import MountFailed, UnsupportedAttribute
from mounter.meta import MetaForm, ensure_meta, meta_path, metas, release_meta, surely_shown
from mounter.meta_tmpfs import _LARGE
from mounter.mountinfo import mounts_below
from tests import trees
from tests.fetcher.small_disk import small_disk
from tests.integration.harness import fresh_file_system
from tests.mounter.mounts import device, directory, file, symlink, tree, whiteout

pytestmark = pytest.mark.root

METACOPY, REDIRECT, OPAQUE = (f"trusted.overlay.{name}" for name in ("metacopy", "redirect", "opaque"))


Make = Callable[[LayerTree], str]


@pytest.fixture(params=MetaForm, ids=lambda form: form.value)
def form(request: pytest.FixtureRequest) -> MetaForm:
    """Every test of what META shows holds for each form."""
    found: MetaForm = request.param
    return found


@pytest.fixture
def make(scratch: str, form: MetaForm) -> Make:
    """META of a layer called `key`; gives where its tree is."""
    return lambda tree: ensure_meta(scratch, "key", tree, form)


def test_a_file_is_sparse_has_its_size_and_points_to_its_data(make: Make, form: MetaForm) -> None:
    target = make(
        tree(
            directory("usr"),
            file("usr/big", 5 << 40, mode=0o4751, uid=12, gid=34, mtime=1_600_000_000),
        )
    )
    path = os.path.join(target, "usr/big")
    found = os.stat(path)
    assert found.st_size == 5 << 40
    if form is MetaForm.TMPFS:  # EROFS tells the blocks that the size would take
        assert found.st_blocks == 0
    assert stat.filemode(found.st_mode) == "-rwsr-x--x"
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert found.st_mtime_ns == 1_600_000_000 * 10**9
    assert os.getxattr(path, METACOPY) == b""
    assert os.getxattr(path, REDIRECT) == b"/key/fs/usr/big"


def test_an_empty_file_is_a_plain_one(make: Make) -> None:
    target = make(tree(file("empty", 0, mtime=7)))
    path = os.path.join(target, "empty")
    assert os.listxattr(path) == []
    assert (os.stat(path).st_size, os.stat(path).st_mtime) == (0, 7)


def test_names_need_not_be_text(make: Make) -> None:
    name = os.fsdecode(b"caf\xe9")
    target = make(tree(file(name)))
    assert os.listdir(os.fsencode(target)) == [b"caf\xe9"]
    assert os.getxattr(os.path.join(target, name), REDIRECT) == b"/key/fs/caf\xe9"


def test_directories_keep_their_times_whatever_is_made_in_them(make: Make) -> None:
    root = directory("", mode=0o711, mtime=11)
    outer, inner = directory("a", mode=0o1777, mtime=22), directory("a/b", mode=0o500, mtime=33)
    outer.uid, inner.gid = 5, 6
    target = make(tree(root, outer, inner, file("a/b/f"), file("a/g")))
    assert _attributes(target) == (0o711, 0, 0, 11)
    assert _attributes(os.path.join(target, "a")) == (0o1777, 5, 0, 22)
    assert _attributes(os.path.join(target, "a/b")) == (0o500, 0, 6, 33)


def test_opaque_directories_say_so_and_no_other(make: Make) -> None:
    target = make(tree(directory("a", opaque=True), directory("b")))
    assert os.getxattr(os.path.join(target, "a"), OPAQUE) == b"y"
    assert os.listxattr(os.path.join(target, "b")) == []


def test_a_tmpfs_lists_its_files_in_the_order_of_the_layer(scratch: str) -> None:
    names = [f"{number * 7 % 50}" for number in range(50)]
    nodes = tree(directory("a"), *(file(f"a/{name}") for name in names))
    target = ensure_meta(scratch, "key", nodes, MetaForm.TMPFS)
    assert os.listdir(os.path.join(target, "a")) == names
    assert os.listdir(target) == ["a"]


def test_special_files(make: Make) -> None:
    link = symlink("link", "/nowhere/at/all")
    link.uid, link.gid, link.mtime = 7, 8, 99
    null = device("null", Kind.CHARACTER, 1, 3, mode=0o666)
    null.gid = 9
    target = make(
        tree(
            link,
            null,
            device("disk", Kind.BLOCK, 8, 1, mode=0o660),
            device("pipe", Kind.FIFO, 0, 0),
            whiteout("gone"),
        )
    )
    status = {entry: os.lstat(os.path.join(target, entry)) for entry in os.listdir(target)}
    assert os.readlink(os.path.join(target, "link")) == "/nowhere/at/all"
    assert (status["link"].st_uid, status["link"].st_gid, status["link"].st_mtime) == (7, 8, 99)
    assert stat.filemode(status["null"].st_mode) == "crw-rw-rw-"
    assert (status["null"].st_rdev, status["null"].st_gid) == (os.makedev(1, 3), 9)
    assert stat.filemode(status["disk"].st_mode) == "brw-rw----"
    assert status["disk"].st_rdev == os.makedev(8, 1)
    assert stat.S_ISFIFO(status["pipe"].st_mode)
    assert stat.S_ISCHR(status["gone"].st_mode)
    assert status["gone"].st_rdev == os.makedev(0, 0)


def test_hard_links_are_one_inode_that_points_to_the_primary(make: Make) -> None:
    linked = file("a/one")
    linked.links = ["two", "a/three"]
    target = make(tree(directory("a", mtime=5), linked))
    inodes = {os.stat(os.path.join(target, name)).st_ino for name in ("a/one", "two", "a/three")}
    assert len(inodes) == 1
    assert os.getxattr(os.path.join(target, "two"), REDIRECT) == b"/key/fs/a/one"
    assert os.stat(os.path.join(target, "a")).st_mtime == 5


def test_the_layers_own_xattrs_are_kept(make: Make) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    ping, linked, folder = file("ping", mode=0o755, uid=1), symlink("link", "ping"), directory("folder")
    ping.xattrs = {"security.capability": capability, "user.note": b"\xff\x00"}
    linked.xattrs = {"trusted.note": b"on the link"}
    folder.xattrs = {"user.note": b"on the directory"}
    target = make(tree(ping, linked, folder))
    path = os.path.join(target, "ping")
    assert os.getxattr(path, "security.capability") == capability
    assert os.getxattr(path, "user.note") == b"\xff\x00"
    assert os.getxattr(os.path.join(target, "link"), "trusted.note", follow_symlinks=False) == b"on the link"
    assert os.getxattr(os.path.join(target, "folder"), "user.note") == b"on the directory"


def test_xattrs_that_steer_overlayfs_are_never_taken_over(make: Make) -> None:
    evil = file("evil")
    evil.xattrs = {REDIRECT: b"/other/fs/etc/shadow", "user.overlay.redirect": b"/other", "user.fine": b"1"}
    target = make(tree(evil))
    path = os.path.join(target, "evil")
    assert os.getxattr(path, REDIRECT) == b"/key/fs/evil"
    assert sorted(os.listxattr(path)) == [METACOPY, REDIRECT, "user.fine"]


def test_an_xattr_that_cannot_be_set_is_named(make: Make) -> None:
    odd = file("etc/odd")
    odd.xattrs = {"nosuchspace.name": b"1"}
    with pytest.raises(UnsupportedAttribute, match=r"nosuchspace\.name") as caught:
        make(tree(directory("etc"), odd))
    assert (caught.value.path, caught.value.attribute) == ("etc/odd", "nosuchspace.name")


def test_modes_do_not_depend_on_the_umask(make: Make) -> None:
    before = os.umask(0o077)
    try:
        target = make(tree(file("f", mode=0o666), directory("d", mode=0o777)))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(os.path.join(target, "f")).st_mode) == 0o666
    assert stat.S_IMODE(os.stat(os.path.join(target, "d")).st_mode) == 0o777


def test_ensuring_mounts_once_and_gives_the_path(scratch: str, form: MetaForm) -> None:
    path = ensure_meta(scratch, "key", tree(file("a")), form)
    assert path == meta_path(scratch, "key")
    assert os.listdir(path) == ["a"]
    assert ensure_meta(scratch, "key", tree(file("not again")), form) == path
    assert os.listdir(path) == ["a"]
    assert metas(scratch) == ["key"]
    assert [mount.fstype for mount in mounts_below(scratch)] == [form.value]


def test_concurrent_callers_in_processes_of_their_own_mount_once(scratch: str, form: MetaForm) -> None:
    code = (
        "import sys; from mounter.meta import *; from tests.mounter.mounts import *; "
        "nodes = tree(*(file(str(n)) for n in range(500))); "
        "print(ensure_meta(sys.argv[1], 'key', nodes, MetaForm(sys.argv[2])), "
        "len(os.listdir(meta_path(sys.argv[1], 'key'))))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, scratch, form.value], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate()[0] for process in running]
    assert set(answers) == {f"{meta_path(scratch, 'key')} 500\n"}
    assert len(mounts_below(scratch)) == 1


def test_a_failure_half_way_leaves_no_mount_and_can_be_tried_again(scratch: str, form: MetaForm) -> None:
    odd = file("z")
    odd.xattrs = {"nosuchspace.name": b"1"}
    with pytest.raises(UnsupportedAttribute):
        ensure_meta(scratch, "key", tree(file("a"), odd), form)
    assert metas(scratch) == []
    assert mounts_below(scratch) == []
    ensure_meta(scratch, "key", tree(file("a")), form)
    assert metas(scratch) == ["key"]


def test_a_process_killed_half_way_leaves_no_mount(scratch: str, form: MetaForm) -> None:
    code = (
        "import os, signal, sys; from mounter.meta import *; from tests.mounter.mounts import *\n"
        "class Deadly(dict):\n"
        "    def items(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "last = file('z'); last.xattrs = Deadly(a=b'')\n"
        "ensure_meta(sys.argv[1], 'key', tree(file('a'), last), MetaForm(sys.argv[2]))"
    )
    run = subprocess.run([sys.executable, "-c", code, scratch, form.value], check=False)
    assert run.returncode == -9
    assert metas(scratch) == []
    assert mounts_below(scratch) == []
    assert os.listdir(ensure_meta(scratch, "key", tree(file("a")), form)) == ["a"]


def test_all_entries_of_directories_of_any_size_are_found(make: Make) -> None:
    """From an empty one to one of many blocks, and names that an EROFS directory sorts before `.`."""
    names = {
        f"d{count}": [f"{number:0{1 + number % 200}}" for number in range(count)]
        for count in range(0, 900, 29)
    }
    names["odd"] = ["!", "#a", "-", "...", "..a", ".a", "~", "\x7f", "é", os.fsdecode(b"\xff"), "n" * 255]
    nodes = [
        node
        for name, files in names.items()
        for node in (directory(name), *(file(f"{name}/{f}") for f in files))
    ]
    target = make(tree(*nodes, directory("deep"), directory("deep/er")))
    for name, files in names.items():
        where = os.path.join(target, name)
        assert sorted(os.listdir(where)) == sorted(files)
        for entry in files:
            path = os.path.join(where, entry)
            assert os.getxattr(path, REDIRECT) == os.fsencode(f"/key/fs/{name}/{entry}")
        assert not os.path.exists(os.path.join(where, "no such file"))
        assert os.stat(os.path.join(where, "..")).st_ino == os.stat(target).st_ino
        assert os.stat(os.path.join(where, ".")).st_ino == os.stat(where).st_ino
    assert os.stat(os.path.join(target, "deep")).st_nlink == 3


@pytest.mark.parametrize("length", [1, 4000, 4031, 4032, 4033, 4095])
def test_symlinks_of_any_length_wherever_they_come_to_lie(make: Make, length: int) -> None:
    targets = {f"link{number}": ("t" * number + "/" * length)[:length] for number in range(40)}
    target = make(tree(*(symlink(name, text) for name, text in targets.items())))
    assert {name: os.readlink(os.path.join(target, name)) for name in targets} == targets


def test_large_xattrs_and_many(make: Make) -> None:
    one, two, folder = file("one"), symlink("two", "x" * 4000), directory("folder")
    one.xattrs = {f"user.{number}": bytes([number]) * number * 7 for number in range(250)}
    two.xattrs = {"security.label": b"l" * 5000}
    folder.xattrs = {"user.big": bytes(range(256)) * 250, "user.empty": b""}
    target = make(tree(one, two, folder, file("folder/f")))
    for node in (one, two, folder):
        path = os.path.join(target, node.path)
        found = {name: os.getxattr(path, name, follow_symlinks=False) for name in node.xattrs}
        assert found == node.xattrs
    assert os.readlink(os.path.join(target, "two")) == "x" * 4000
    assert os.listdir(os.path.join(target, "folder")) == ["f"]


def test_acls_are_in_force(make: Make) -> None:
    """rwx for the user, r for user 1234 and the mask; none for others."""
    entries = [(1, 7, 0xFFFFFFFF), (2, 4, 1234), (4, 0, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    guarded, folder = file("guarded", 0, mode=0o740), directory("folder")
    guarded.xattrs = {"system.posix_acl_access": acl}
    folder.xattrs = {"system.posix_acl_default": acl}
    target = make(tree(guarded, folder))
    assert os.getxattr(os.path.join(target, "guarded"), "system.posix_acl_access") == acl
    assert os.getxattr(os.path.join(target, "folder"), "system.posix_acl_default") == acl


def test_what_erofs_has_no_place_for_is_named_and_never_promised(scratch: str) -> None:
    for attribute, node in (
        ("size", file("huge", FILE_LIMIT + 1)),
        ("user.much", file("much")),
        ("system.posix_acl_accessory", file("odd")),
        ("user.0", file("many")),
    ):
        if attribute == "user.0":
            node.xattrs = {f"user.{number}": bytes(65000) for number in range(5)}
        elif attribute != "size":
            node.xattrs = {attribute: bytes(65536)}
        nodes = tree(directory("d"), node)
        assert not surely_shown(nodes)
        with pytest.raises(UnsupportedAttribute, match=node.path) as caught:
            ensure_meta(scratch, "key", nodes, MetaForm.EROFS)
        assert (caught.value.path, caught.value.attribute) == (node.path, attribute)
    assert metas(scratch) == []
    assert surely_shown(tree(file("largest", FILE_LIMIT)))


def test_the_largest_file_of_all(scratch: str) -> None:
    path = ensure_meta(scratch, "key", tree(file("largest", FILE_LIMIT)), MetaForm.EROFS)
    with open(os.path.join(path, "largest"), "rb") as largest:
        assert os.fstat(largest.fileno()).st_size == FILE_LIMIT
        largest.seek(-5, os.SEEK_END)
        assert largest.read() == bytes(5)


def test_times_before_1970_and_after_2038(make: Make) -> None:
    target = make(tree(file("old", mtime=-86400 * 365), file("new", mtime=1 << 33)))
    assert os.stat(os.path.join(target, "old")).st_mtime == -86400 * 365
    assert os.stat(os.path.join(target, "new")).st_mtime == 1 << 33


def test_devices_with_large_numbers(make: Make) -> None:
    target = make(tree(device("d", Kind.CHARACTER, 0xFFF, 0xFFFFF), device("e", Kind.BLOCK, 1, 0x12345)))
    assert os.stat(os.path.join(target, "d")).st_rdev == os.makedev(0xFFF, 0xFFFFF)
    assert os.stat(os.path.join(target, "e")).st_rdev == os.makedev(1, 0x12345)


def test_an_erofs_image_keeps_no_name_and_its_room_goes_with_the_mount(scratch: str) -> None:
    nodes = tree(*(file(f"{number:0200}") for number in range(20_000)))
    with fresh_file_system(f"{scratch}/disk") as disk:

        def taken() -> int:
            os.sync()
            found = os.statvfs(disk)
            return (found.f_blocks - found.f_bfree) * found.f_frsize

        before = taken()
        ensure_meta(disk, "key", nodes, MetaForm.EROFS)
        assert sorted(os.listdir(os.path.join(disk, "meta"))) == ["key", "key.lock"]
        assert taken() - before > 20_000 * 400
        release_meta(disk, "key")
        assert taken() - before < 20_000 * 4


# One thread, and as many files as are worth a second process.
LARGE: Final = """
import os, sys
from mounter.errors import MountFailed
from mounter.meta import MetaForm, ensure_meta, metas
from mounter.meta_tmpfs import _LARGE
from tests.mounter.mounts import *
root, names, processes = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])
nodes = [directory("d", mode=0o751), directory("d/empty"), directory("e")]
nodes += [file(f"{number}", size=number) for number in range(_LARGE)]
nodes += [file(f"d/{number}", mode=0o4711, uid=7) for number in range(3000)]
nodes += [symlink("e/link", "d/1"), *(file(name) for name in names)]
nodes[-1].links = ["d/another"]
try:
    ensure_meta(root, "key", tree(*nodes), MetaForm.TMPFS, processes=processes)
except MountFailed as error:
    print(error.errno, metas(root))
"""


def make_large(root: str, *names: str, processes: int) -> str:
    os.mkdir(root)
    command = [sys.executable, "-c", LARGE, root, " ".join(names), str(processes)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_a_large_tmpfs_is_the_same_whether_one_or_two_processes_make_it(scratch: str) -> None:
    made = []
    for processes in (1, 2):
        assert make_large(f"{scratch}/{processes}", "e/last", processes=processes) == ""
        made.append(trees.scan(meta_path(f"{scratch}/{processes}", "key")))
    assert len(made[0]) > _LARGE
    assert made[0] == made[1]


def test_a_failure_in_the_second_process_is_one_of_both(scratch: str) -> None:
    said = make_large(f"{scratch}/2", f"d/{'n' * 300}", processes=2)
    assert said == f"{errno.ENAMETOOLONG} []\n"
    assert mounts_below(scratch) == []


def test_where_the_disk_is_full_meta_is_a_tmpfs(scratch: str) -> None:
    nodes = tree(*(file(f"{number:0100}") for number in range(1000)))
    with small_disk(scratch, kilobytes=100):
        path = ensure_meta(scratch, "key", nodes, MetaForm.EROFS)
        assert len(os.listdir(path)) == 1000
        (mount,) = [mount for mount in mounts_below(scratch) if mount.target != scratch]
        assert mount.fstype == "tmpfs"
        release_meta(scratch, "key")


def test_releasing_leaves_nothing(scratch: str, form: MetaForm) -> None:
    ensure_meta(scratch, "key", tree(file("a")), form)
    release_meta(scratch, "key")
    assert mounts_below(scratch) == []
    assert os.listdir(os.path.join(scratch, "meta")) == []


def test_a_file_in_the_way_is_a_failed_mount(scratch: str, form: MetaForm) -> None:
    os.mkdir(os.path.join(scratch, "meta"))
    open(os.path.join(scratch, "meta", "key"), "wb").close()
    with pytest.raises(MountFailed) as caught:
        ensure_meta(scratch, "key", tree(), form)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.target == os.path.join(scratch, "meta", "key")


def _attributes(path: str) -> tuple[int, int, int, float]:
    found = os.stat(path)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime
