"""META trees: every attribute of a layer, and none of its bytes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import Final

import pytest

from fetcher.nodes import Kind
from mounter.errors import MountFailed, UnsupportedAttribute
from mounter.meta import _LARGE, build_meta, ensure_meta, meta_path, metas, release_meta
from mounter.mountinfo import mounts_below
from mounter.syscalls import mount_tmpfs
from tests import trees
from tests.mounter.mounts import device, directory, file, symlink, tree, whiteout

pytestmark = pytest.mark.root

METACOPY, REDIRECT, OPAQUE = (f"trusted.overlay.{name}" for name in ("metacopy", "redirect", "opaque"))


@pytest.fixture
def target(scratch: str) -> str:
    """An empty directory on a tmpfs."""
    path = os.path.join(scratch, "meta")
    os.mkdir(path)
    mount_tmpfs(path, options={})
    return path


def test_a_file_is_sparse_has_its_size_and_points_to_its_data(target: str) -> None:
    build_meta(
        tree(
            directory("usr"),
            file("usr/big", 5 << 40, mode=0o4751, uid=12, gid=34, mtime=1_600_000_000),
        ),
        target,
        layer="key",
    )
    path = os.path.join(target, "usr/big")
    found = os.stat(path)
    assert (found.st_size, found.st_blocks) == (5 << 40, 0)
    assert stat.filemode(found.st_mode) == "-rwsr-x--x"
    assert (found.st_uid, found.st_gid) == (12, 34)
    assert found.st_mtime_ns == 1_600_000_000 * 10**9
    assert os.getxattr(path, METACOPY) == b""
    assert os.getxattr(path, REDIRECT) == b"/key/fs/usr/big"


def test_an_empty_file_is_a_plain_one(target: str) -> None:
    build_meta(tree(file("empty", 0, mtime=7)), target, layer="key")
    path = os.path.join(target, "empty")
    assert os.listxattr(path) == []
    assert (os.stat(path).st_size, os.stat(path).st_mtime) == (0, 7)


def test_names_need_not_be_text(target: str) -> None:
    name = os.fsdecode(b"caf\xe9")
    build_meta(tree(file(name)), target, layer="key")
    assert os.listdir(os.fsencode(target)) == [b"caf\xe9"]
    assert os.getxattr(os.path.join(target, name), REDIRECT) == b"/key/fs/caf\xe9"


def test_directories_keep_their_times_whatever_is_made_in_them(target: str) -> None:
    root = directory("", mode=0o711, mtime=11)
    outer, inner = directory("a", mode=0o1777, mtime=22), directory("a/b", mode=0o500, mtime=33)
    outer.uid, inner.gid = 5, 6
    build_meta(tree(root, outer, inner, file("a/b/f"), file("a/g")), target, layer="key")
    assert _attributes(target) == (0o711, 0, 0, 11)
    assert _attributes(os.path.join(target, "a")) == (0o1777, 5, 0, 22)
    assert _attributes(os.path.join(target, "a/b")) == (0o500, 0, 6, 33)


def test_opaque_directories_say_so_and_no_other(target: str) -> None:
    build_meta(tree(directory("a", opaque=True), directory("b")), target, layer="key")
    assert os.getxattr(os.path.join(target, "a"), OPAQUE) == b"y"
    assert os.listxattr(os.path.join(target, "b")) == []


def test_a_directory_lists_its_files_in_the_order_of_the_layer(target: str) -> None:
    names = [f"{number * 7 % 50}" for number in range(50)]
    build_meta(tree(directory("a"), *(file(f"a/{name}") for name in names)), target, layer="key")
    assert os.listdir(os.path.join(target, "a")) == names
    assert os.listdir(target) == ["a"]


def test_special_files(target: str) -> None:
    link = symlink("link", "/nowhere/at/all")
    link.uid, link.gid, link.mtime = 7, 8, 99
    null = device("null", Kind.CHARACTER, 1, 3, mode=0o666)
    null.gid = 9
    build_meta(
        tree(
            link,
            null,
            device("disk", Kind.BLOCK, 8, 1, mode=0o660),
            device("pipe", Kind.FIFO, 0, 0),
            whiteout("gone"),
        ),
        target,
        layer="key",
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


def test_hard_links_are_one_inode_that_points_to_the_primary(target: str) -> None:
    linked = file("a/one")
    linked.links = ["two", "a/three"]
    build_meta(tree(directory("a", mtime=5), linked), target, layer="key")
    inodes = {os.stat(os.path.join(target, name)).st_ino for name in ("a/one", "two", "a/three")}
    assert len(inodes) == 1
    assert os.getxattr(os.path.join(target, "two"), REDIRECT) == b"/key/fs/a/one"
    assert os.stat(os.path.join(target, "a")).st_mtime == 5


def test_the_layers_own_xattrs_are_kept(target: str) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    ping, linked, folder = file("ping", mode=0o755, uid=1), symlink("link", "ping"), directory("folder")
    ping.xattrs = {"security.capability": capability, "user.note": b"\xff\x00"}
    linked.xattrs = {"trusted.note": b"on the link"}
    folder.xattrs = {"user.note": b"on the directory"}
    build_meta(tree(ping, linked, folder), target, layer="key")
    path = os.path.join(target, "ping")
    assert os.getxattr(path, "security.capability") == capability
    assert os.getxattr(path, "user.note") == b"\xff\x00"
    assert os.getxattr(os.path.join(target, "link"), "trusted.note", follow_symlinks=False) == b"on the link"
    assert os.getxattr(os.path.join(target, "folder"), "user.note") == b"on the directory"


def test_xattrs_that_steer_overlayfs_are_never_taken_over(target: str) -> None:
    evil = file("evil")
    evil.xattrs = {REDIRECT: b"/other/fs/etc/shadow", "user.overlay.redirect": b"/other", "user.fine": b"1"}
    build_meta(tree(evil), target, layer="key")
    path = os.path.join(target, "evil")
    assert os.getxattr(path, REDIRECT) == b"/key/fs/evil"
    assert sorted(os.listxattr(path)) == [METACOPY, REDIRECT, "user.fine"]


def test_an_xattr_that_cannot_be_set_is_named(target: str) -> None:
    odd = file("etc/odd")
    odd.xattrs = {"nosuchspace.name": b"1"}
    with pytest.raises(UnsupportedAttribute, match=r"nosuchspace\.name") as caught:
        build_meta(tree(directory("etc"), odd), target, layer="key")
    assert (caught.value.path, caught.value.attribute) == ("etc/odd", "nosuchspace.name")


def test_modes_do_not_depend_on_the_umask(target: str) -> None:
    before = os.umask(0o077)
    try:
        build_meta(tree(file("f", mode=0o666), directory("d", mode=0o777)), target, layer="key")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(os.path.join(target, "f")).st_mode) == 0o666
    assert stat.S_IMODE(os.stat(os.path.join(target, "d")).st_mode) == 0o777


def test_ensuring_mounts_once_and_gives_the_path(scratch: str) -> None:
    path = ensure_meta(scratch, "key", tree(file("a")))
    assert path == meta_path(scratch, "key")
    assert os.listdir(path) == ["a"]
    assert ensure_meta(scratch, "key", tree(file("not again"))) == path
    assert os.listdir(path) == ["a"]
    assert metas(scratch) == ["key"]
    assert [mount.source for mount in mounts_below(scratch)] == ["layergate-meta"]


def test_concurrent_callers_in_processes_of_their_own_mount_once(scratch: str) -> None:
    code = (
        "import sys; from mounter.meta import *; from tests.mounter.mounts import *; "
        "print(ensure_meta(sys.argv[1], 'key', tree(*(file(str(n)) for n in range(500)))), "
        "len(os.listdir(meta_path(sys.argv[1], 'key'))))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, scratch], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [process.communicate()[0] for process in running]
    assert set(answers) == {f"{meta_path(scratch, 'key')} 500\n"}
    assert len(mounts_below(scratch)) == 1


def test_a_failure_half_way_leaves_no_mount_and_can_be_tried_again(scratch: str) -> None:
    odd = file("z")
    odd.xattrs = {"nosuchspace.name": b"1"}
    with pytest.raises(UnsupportedAttribute):
        ensure_meta(scratch, "key", tree(file("a"), odd))
    assert metas(scratch) == []
    assert mounts_below(scratch) == []
    ensure_meta(scratch, "key", tree(file("a")))
    assert metas(scratch) == ["key"]


def test_a_process_killed_half_way_leaves_no_mount(scratch: str) -> None:
    code = (
        "import os, signal, sys; from mounter.meta import *; from tests.mounter.mounts import *\n"
        "class Deadly(dict):\n"
        "    def items(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "last = file('z'); last.xattrs = Deadly(a=b'')\n"
        "ensure_meta(sys.argv[1], 'key', tree(file('a'), last))"
    )
    run = subprocess.run([sys.executable, "-c", code, scratch], check=False)
    assert run.returncode == -9
    assert metas(scratch) == []
    assert mounts_below(scratch) == []
    assert os.listdir(ensure_meta(scratch, "key", tree(file("a")))) == ["a"]


# One thread, and as many files as are worth a second process.
LARGE: Final = """
import os, sys
from mounter.errors import MountFailed
from mounter.meta import _LARGE, ensure_meta, metas
from tests.mounter.mounts import *
root, names, processes = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])
nodes = [directory("d", mode=0o751), directory("d/empty"), directory("e")]
nodes += [file(f"{number}", size=number) for number in range(_LARGE)]
nodes += [file(f"d/{number}", mode=0o4711, uid=7) for number in range(3000)]
nodes += [symlink("e/link", "d/1"), *(file(name) for name in names)]
nodes[-1].links = ["d/another"]
try:
    ensure_meta(root, "key", tree(*nodes), processes=processes)
except MountFailed as error:
    print(error.errno, metas(root))
"""


def make_large(root: str, *names: str, processes: int) -> str:
    os.mkdir(root)
    command = [sys.executable, "-c", LARGE, root, " ".join(names), str(processes)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def test_a_large_one_is_the_same_whether_one_or_two_processes_make_it(scratch: str) -> None:
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


def test_releasing_leaves_nothing(scratch: str) -> None:
    ensure_meta(scratch, "key", tree(file("a")))
    release_meta(scratch, "key")
    assert mounts_below(scratch) == []
    assert os.listdir(os.path.join(scratch, "meta")) == []


def test_a_file_in_the_way_is_a_failed_mount(scratch: str) -> None:
    os.mkdir(os.path.join(scratch, "meta"))
    open(os.path.join(scratch, "meta", "key"), "wb").close()
    with pytest.raises(MountFailed) as caught:
        ensure_meta(scratch, "key", tree())
    assert caught.value.errno == errno.EEXIST
    assert caught.value.target == os.path.join(scratch, "meta", "key")


def _attributes(path: str) -> tuple[int, int, int, float]:
    found = os.stat(path)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime
