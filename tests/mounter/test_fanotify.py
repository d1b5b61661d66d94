"""Recording opens by fanotify: through which mounts, by which names, within which limits."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from mounter.fanotify import OpenRecorder
from mounter.mountinfo import mounts_below
from mounter.syscalls import mount_overlay, mount_tmpfs, unmount

pytestmark = pytest.mark.root

_IN_A_CONTAINER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
root = sys.argv[1]
assert libc.unshare(0x20000) == 0
assert libc.mount(b"none", b"/", None, 0x4000 | 1 << 18, None) == 0
assert libc.mount(root.encode(), root.encode(), None, 0x1000, None) == 0
open(root + "/before").read()
os.chdir(root)
os.mkdir("old")
assert libc.syscall({"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b"old") == 0
os.chroot(".")
for path in sys.argv[2:]:
    open(path).read()
"""


@pytest.fixture
def overlay(scratch: str) -> Iterator[str]:
    """An overlay like a container's; everything of it lies in one lower directory."""
    lower, upper, work, target = (
        os.path.join(scratch, name) for name in ("lower", "upper", "work", "target")
    )
    for path in (lower, upper, work, target, f"{lower}/etc", f"{lower}/a b"):
        os.mkdir(path)
    for name in ("before", "etc/one", "etc/two", "a b/\n\udcff", *(f"f{number}" for number in range(50))):
        with open(os.path.join(lower, name), "wb") as file:
            file.write(b"content")
    os.symlink("one", f"{lower}/etc/link")
    os.mkfifo(f"{lower}/fifo")
    mount_overlay(target, lower=[lower], options={"upperdir": upper, "workdir": work}, read_only=False)
    yield target
    for mount in mounts_below(target):
        unmount(mount.target)


def taken(recorder: OpenRecorder) -> list[str]:
    while recorder.take():
        pass
    return list(recorder.opens)


def read(*paths: str) -> None:
    """Open files in a process that is not this one."""
    code = "import sys\nfor path in sys.argv[1:]: open(path, 'rb').read()"
    subprocess.run([sys.executable, "-c", code, *paths], check=True)


def in_a_container(overlay: str, *paths: str) -> None:
    """Open files in a process whose root the overlay is, in a mount namespace of its own."""
    subprocess.run([sys.executable, "-c", _IN_A_CONTAINER, overlay, *paths], check=True)


def test_first_opens_come_in_their_order_by_the_names_of_the_files(overlay: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        names = ("etc/two", "etc/link", "etc/two", "etc/one", "a b/\n\udcff")
        read(*(f"{overlay}/{name}" for name in names))
        assert taken(recorder) == ["etc/two", "etc/one", "a b/\n\udcff"]
        assert list(recorder.opens.values()) == sorted(recorder.opens.values())
        assert not recorder.lost
        assert not recorder.full


def test_opens_in_another_mount_namespace_are_named_as_seen_there(overlay: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        in_a_container(overlay, "/etc/two", "/etc/one")
        # `before` was opened from outside, below the path that the overlay has here.
        assert [path for path in taken(recorder) if path != "before"] == ["etc/two", "etc/one"]
        assert "before" in recorder.opens


def test_what_is_opened_elsewhere_is_not_told(overlay: str, scratch: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        read(f"{scratch}/lower/etc/one", f"{overlay}/etc/two")
        assert taken(recorder) == ["etc/two"]


def test_own_opens_directories_fifos_and_deleted_files_do_not_count(overlay: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        with open(f"{overlay}/etc/one", "rb"):
            pass
        code = (
            "import os, sys; os.chdir(sys.argv[1]); os.listdir('etc'); os.open('fifo', os.O_RDWR);"
            "open('gone', 'w'); os.unlink('gone'); open('etc/two')"
        )
        subprocess.run([sys.executable, "-c", code, overlay], check=True)
        assert taken(recorder) == ["etc/two"]


def test_a_program_and_what_it_runs_by_are_opened_too(overlay: str, scratch: str) -> None:
    os.makedirs(f"{overlay}/bin")
    with open("/bin/true", "rb") as program, open(f"{overlay}/bin/true", "wb") as copy:
        copy.write(program.read())
    os.chmod(f"{overlay}/bin/true", 0o755)
    with closing(OpenRecorder(overlay)) as recorder:
        subprocess.run([f"{overlay}/bin/true"], check=True)
        assert taken(recorder) == ["bin/true"]


def test_it_can_be_waited_for(overlay: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        assert select.select([recorder], [], [], 0)[0] == []
        read(f"{overlay}/etc/one")
        assert select.select([recorder], [], [], 10)[0] == [recorder]
        assert taken(recorder) == ["etc/one"]
        assert select.select([recorder], [], [], 0)[0] == []


def test_it_is_full_after_so_many_files(overlay: str) -> None:
    with closing(OpenRecorder(overlay, paths=3)) as recorder:
        read(*(f"{overlay}/f{number}" for number in range(10)))
        assert taken(recorder) == ["f0", "f1", "f2"]
        assert recorder.full
        assert not recorder.take()


def test_it_is_full_after_so_many_opens(overlay: str) -> None:
    with closing(OpenRecorder(overlay, events=5)) as recorder:
        for number in (0, 1, 0, 1):
            read(f"{overlay}/f{number}")
            taken(recorder)
        assert recorder.take() is False
        read(f"{overlay}/f0")
        assert taken(recorder) == ["f0", "f1"]
        assert recorder.full
        read(f"{overlay}/f2")
        assert taken(recorder) == ["f0", "f1"]


def test_what_does_not_fit_into_the_queue_is_lost_and_said_to_be(scratch: str) -> None:
    with open("/proc/sys/fs/fanotify/max_queued_events", encoding="ascii") as limit:
        queue = int(limit.read())
    os.mkdir(f"{scratch}/files")
    mount_tmpfs(f"{scratch}/files", options={})
    # Different files: the kernel tells what is the same as what waits to be told only once.
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\n"
        "for number in range(int(sys.argv[2])): os.close(os.open(str(number), os.O_CREAT))"
    )
    with closing(OpenRecorder(f"{scratch}/files", paths=queue + 1000)) as recorder:
        subprocess.run([sys.executable, "-c", code, f"{scratch}/files", str(queue + 500)], check=True)
        found = taken(recorder)
        assert found == [str(number) for number in range(len(found))]
        assert 0 < len(found) < queue + 500
        assert recorder.lost


def test_the_overlay_can_be_unmounted_while_it_is_watched(overlay: str) -> None:
    with closing(OpenRecorder(overlay)) as recorder:
        read(f"{overlay}/etc/one")
        assert taken(recorder) == ["etc/one"]
        unmount(overlay)
        assert taken(recorder) == ["etc/one"]
        read("/etc/passwd")
        assert taken(recorder) == ["etc/one"]


def test_nothing_is_held_once_it_is_closed(overlay: str) -> None:
    recorder = OpenRecorder(overlay)
    read(f"{overlay}/etc/one")
    recorder.close()
    recorder.close()
    unmount(overlay)


def test_what_is_not_there_cannot_be_watched(scratch: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError, match="cannot watch") as caught:
        OpenRecorder(f"{scratch}/absent")
    assert caught.value.filename == f"{scratch}/absent"
    assert set(os.listdir("/proc/self/fd")) == before
