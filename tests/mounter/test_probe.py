"""The probe on file systems that can, and on some that cannot."""

from __future__ import annotations

import fcntl
import os

import pytest

from mounter.meta import MetaForm
from mounter.mountinfo import mounts_below
from mounter.probe import Check, Mode, check_fuse, judge, left_probes, probe, remove_left_probes
from mounter.syscalls import mount_overlay, mount_tmpfs
from tests.mounter.mounts import counting_gate

GOOD = Check("good", True, "can be done")
BAD = Check("bad", False, "cannot be done", "do something")


@pytest.mark.root
def test_this_host_has_the_gate_and_nothing_is_left(scratch: str) -> None:
    found = probe(scratch)
    assert [check for check in found.checks if check.ok is not True] == []
    assert (found.mode, found.reason, found.meta) == (Mode.GATE, "", MetaForm.EROFS)
    assert mounts_below(scratch) == []
    assert os.listdir(scratch) == []


@pytest.mark.root
def test_where_no_erofs_image_can_be_mounted_meta_is_a_tmpfs_and_nothing_is_left(scratch: str) -> None:
    """The kernel mounts none from a file on a tmpfs."""
    mount_tmpfs(scratch, options={})
    found = probe(scratch)
    assert (found.mode, found.reason, found.meta) == (Mode.GATE, "", MetaForm.TMPFS)
    (warning,) = [check for check in found.checks if check.ok is not True]
    assert (warning.name, warning.ok) == ("META as EROFS", None)
    assert "CONFIG_EROFS_FS_BACKED_BY_FILE" in warning.remedy
    assert [mount.target for mount in mounts_below(scratch)] == [scratch]
    assert os.listdir(scratch) == []


@pytest.mark.root
def test_what_a_killed_probe_left_is_removed_unless_one_runs(scratch: str) -> None:
    left = os.path.join(scratch, ".probe-left")
    os.makedirs(os.path.join(left, "merged", "inside"))
    mount_tmpfs(os.path.join(left, "merged"), options={})
    os.mkdir(os.path.join(scratch, "other"))
    running = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(running, fcntl.LOCK_SH)
    assert left_probes(scratch) == []
    remove_left_probes(scratch)
    os.close(running)
    assert left_probes(scratch) == [left]
    remove_left_probes(scratch)
    assert mounts_below(scratch) == []
    assert os.listdir(scratch) == ["other"]


@pytest.mark.root
def test_a_data_directory_on_overlayfs_cannot_serve_and_nothing_is_left(scratch: str) -> None:
    lower, upper, work, merged = (
        os.path.join(scratch, name) for name in ("lower", "upper", "work", "merged")
    )
    for path in (lower, upper, work, merged):
        os.mkdir(path)
    mount_overlay(merged, lower=[lower], options={"upperdir": upper, "workdir": work}, read_only=False)
    found = probe(merged)
    assert found.mode is Mode.NONE
    assert "overlay" in found.reason
    assert "local ext4" in next(check for check in found.checks if check.name == "data directory").remedy
    assert [mount.target for mount in mounts_below(scratch)] == [merged]
    assert os.listdir(merged) == []


@pytest.mark.root
def test_a_data_directory_that_cannot_be_written(scratch: str) -> None:
    with counting_gate(scratch):
        found = probe(scratch)
    assert found.mode is Mode.NONE
    assert "cannot be written" in found.reason


def test_a_fuse_device_that_is_not_there(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(FileNotFoundError):
        check_fuse(os.path.join(tmp_path, "fuse"))


def test_without_fuse_or_a_place_for_upper_directories_nothing_is_lazy() -> None:
    for fuse, upper in ((BAD, GOOD), (GOOD, BAD)):
        found = judge(fuse, upper, (GOOD, GOOD), (GOOD,), MetaForm.EROFS)
        assert (found.mode, found.reason) == (Mode.NONE, "bad: cannot be done")


def test_without_data_only_layers_the_stub_serves() -> None:
    found = judge(GOOD, GOOD, (GOOD, BAD), (GOOD,), MetaForm.TMPFS)
    assert (found.mode, found.reason) == (Mode.STUB, "bad: cannot be done")


def test_a_warning_changes_no_mode() -> None:
    warning = Check("warning", None, "not on this kernel", "upgrade")
    found = judge(GOOD, GOOD, (GOOD, GOOD), (warning,), MetaForm.TMPFS)
    assert found.mode is Mode.GATE
    assert found.checks[-1] == warning
