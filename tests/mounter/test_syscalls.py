"""Mount system calls on real file systems."""

from __future__ import annotations

import errno
import os

import pytest

from mounter.mountinfo import mounts_below
from mounter.syscalls import (
    attach,
    detach,
    detached_tmpfs,
    mount,
    mount_overlay,
    mount_overlay_by_string,
    mount_tmpfs,
)

pytestmark = pytest.mark.root

_LAZY = {"metacopy": "on", "redirect_dir": "follow"}


def _layers(base: str) -> tuple[str, str, str]:
    """A mount point, a lower directory with a metacopy file, and a data-only layer that has its bytes."""
    target, lower, data = (os.path.join(base, name) for name in ("target", "lower", "data"))
    for path in (target, lower, data):
        os.makedirs(path)
    with open(os.path.join(lower, "file"), "wb") as stub:
        stub.truncate(5)
    os.setxattr(os.path.join(lower, "file"), "trusted.overlay.metacopy", b"")
    os.setxattr(os.path.join(lower, "file"), "trusted.overlay.redirect", b"/file")
    with open(os.path.join(data, "file"), "wb") as full:
        full.write(b"bytes")
    return target, lower, data


def _content(target: str) -> bytes:
    with open(os.path.join(target, "file"), "rb") as file:
        return file.read()


NAMES = ["plain", "a:b", "a,b", "a\\b", "a\\:b", "a b", "Grüße", "n" * 250]


@pytest.mark.parametrize("name", NAMES)
def test_layers_may_have_any_name(scratch: str, name: str) -> None:
    target, lower, data = _layers(os.path.join(scratch, name))
    mount_overlay(target, lower=[lower], data=[data], options=_LAZY, read_only=True)
    assert _content(target) == b"bytes"


@pytest.mark.parametrize("name", NAMES)
def test_also_where_the_kernel_takes_one_string(scratch: str, name: str) -> None:
    target, lower, data = _layers(os.path.join(scratch, name))
    mount_overlay_by_string(target, lower=[lower], data=[data], options=_LAZY, read_only=True)
    assert _content(target) == b"bytes"


def test_a_string_longer_than_a_page_is_refused_with_its_length(scratch: str) -> None:
    target, lower, data = _layers(scratch)
    with pytest.raises(OSError, match="this kernel takes 4095") as caught:
        mount_overlay_by_string(target, lower=[lower] * 200, data=[data], options=_LAZY, read_only=True)
    assert caught.value.errno == errno.ENAMETOOLONG


def test_more_layers_than_a_page_has_room_for(scratch: str) -> None:
    paths = [os.path.join(scratch, f"{number:060}") for number in range(200)]
    for path in paths:
        os.mkdir(path)
    target, lower, _ = _layers(os.path.join(scratch, "rest"))
    mount_overlay(target, lower=[*paths, lower], options={}, read_only=True)
    assert os.listdir(target) == ["file"]


def test_a_read_only_overlay_refuses_writes(scratch: str) -> None:
    target, lower, data = _layers(scratch)
    mount_overlay(target, lower=[lower], data=[data], options=_LAZY, read_only=True)
    assert mounts_below(target)[0].read_only
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        os.mkdir(os.path.join(target, "new"))


def test_an_error_has_the_kernels_words_and_the_mount_point(scratch: str) -> None:
    target, lower, _ = _layers(scratch)
    with pytest.raises(OSError, match=r"bogus=1.*Unknown parameter 'bogus'") as caught:
        mount_overlay(target, lower=[lower], options={"bogus": "1"}, read_only=True)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == target


def test_an_error_names_the_layer(scratch: str) -> None:
    target, lower, _ = _layers(scratch)
    missing = os.path.join(scratch, "missing")
    with pytest.raises(FileNotFoundError, match=f"lowerdir\\+={missing}") as caught:
        mount_overlay(target, lower=[lower, missing], options={}, read_only=True)
    assert caught.value.filename == target


def test_failures_leave_no_descriptor_and_no_mount(scratch: str) -> None:
    target, lower, data = _layers(scratch)
    before = os.listdir("/proc/self/fd")
    for options, where in (({"bogus": "1"}, target), (_LAZY, os.path.join(scratch, "missing"))):
        with pytest.raises(OSError, match="cannot"):
            mount_overlay(where, lower=[lower], data=[data], options=options, read_only=True)
    assert os.listdir("/proc/self/fd") == before
    assert mounts_below(scratch) == []


def test_a_file_system_that_is_not_there(scratch: str) -> None:
    with pytest.raises(OSError, match="cannot mount nosuchfs") as caught:
        mount("none", scratch, "nosuchfs")
    assert caught.value.errno == errno.ENODEV
    assert caught.value.filename == scratch


def test_a_tmpfs_takes_its_options(scratch: str) -> None:
    mount_tmpfs(scratch, source="name", options={"mode": "0710", "size": "64k"})
    (found,) = mounts_below(scratch)
    assert (found.fstype, found.source) == ("tmpfs", "name")
    assert {"size=64k", "mode=710"} <= set(found.super_options)
    assert {"nosuid", "nodev"} <= set(found.options)


def test_a_tmpfs_with_a_wrong_option_names_it(scratch: str) -> None:
    with pytest.raises(OSError, match="mode=abc"):
        mount_tmpfs(scratch, options={"mode": "abc"})
    assert mounts_below(scratch) == []


def test_a_detached_tmpfs_is_seen_when_attached_and_not_before(scratch: str) -> None:
    with detached_tmpfs(source="name", options={}) as fd:
        os.mkdir("inside", dir_fd=fd)
        assert os.listdir(scratch) == []
        attach(fd, scratch)
    assert os.listdir(scratch) == ["inside"]


def test_a_detached_tmpfs_is_gone_with_its_block(scratch: str) -> None:
    with detached_tmpfs(source="name", options={}) as fd:
        os.mkdir("inside", dir_fd=fd)
    assert mounts_below(scratch) == []
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


def test_detaching_takes_the_mounts_below_along(scratch: str) -> None:
    mount_tmpfs(scratch, options={})
    inner = os.path.join(scratch, "inner")
    os.mkdir(inner)
    mount_tmpfs(inner, options={})
    detach(scratch)
    assert mounts_below(scratch) == []


def test_a_detached_mount_lives_as_long_as_somebody_uses_it(scratch: str) -> None:
    mount_tmpfs(scratch, options={})
    with open(os.path.join(scratch, "file"), "w+") as file:
        detach(scratch)
        file.write("still here")
        file.seek(0)
        assert file.read() == "still here"


def test_detaching_nothing_is_an_error(scratch: str) -> None:
    with pytest.raises(OSError, match="cannot unmount") as caught:
        detach(scratch)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == scratch
