"""Which layers mounts need: from lines of mountinfo, and from real mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mounter.lowers import Meta, mount_lazy_lower
from mounter.meta import MetaForm, ensure_meta
from mounter.mountinfo import Mount, mounts_below, parse_mountinfo
from mounter.syscalls import detach, mount, mount_overlay
from mounter.uses import release_unused
from snapshotter.cache.mounted import Root, forget_released_lowers, layers_in_mounts, names_in_mounts
from tests.mounter.gate_node import until
from tests.snapshotter.cached import CachedNode

ONE, TWO, LAZY = "a" * 20, "b" * 20, "c" * 20


def overlay(options: str, target: str = "/run/rootfs") -> Mount:
    line = f"80 42 0:46 / {target} rw,relatime - overlay overlay rw,{options}"
    return parse_mountinfo(line.encode())[0]


def bind(root: str, *, device: str = "7:0", target: str = "/mnt") -> Mount:
    line = f"81 42 {device} {root} {target} ro,relatime - ext4 /dev/loop0 rw"
    return parse_mountinfo(line.encode())[0]


def names(*mounts: Mount) -> dict[str, set[str]]:
    root = Root(frozenset({"/var/lib/layergate", "/data/layergate"}), (7, 0), "/lib/layergate")
    return names_in_mounts(mounts, root)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (f"lowerdir=/var/lib/layergate/layers/{ONE}/fs,upperdir=/u,workdir=/w", {ONE}),
        (f"lowerdir=/var/lib/layergate/layers/{ONE}/fs:/data/layergate/layers/{TWO}/fs", {ONE, TWO}),
        (f"lowerdir=/data/layergate/lazy/{LAZY},upperdir=/u,workdir=/w,xino=on", {LAZY}),
        (f"lowerdir+=/var/lib/layergate/meta/{ONE}/fs,datadir+=/var/lib/layergate/layers", {ONE}),
        (f"lowerdir=/var/lib/layergate/gate/{ONE}/fs:/x", {ONE}),
        (f"lowerdir={ONE}/fs:{TWO}/fs,upperdir=/u", {ONE, TWO}),
        (f"lowerdir=/other/layers/{ONE}/fs", set()),
        (f"lowerdir=/other/var/lib/layergate/layers/{ONE}/fs", set()),
        (f"lowerdir=/var/lib/layergate/layers/{ONE}x/fs", set()),
        (f"lowerdir=/var/lib/layergate/snapshots/7/fs,upperdir=/var/lib/layergate/{ONE}", set()),
        ("lowerdir=/usr,upperdir=/u,workdir=/w", set()),
    ],
)
def test_overlays(options: str, expected: set[str]) -> None:
    assert names(overlay(options)).keys() == expected


def test_a_lazy_lower_needs_nothing_for_itself_wherever_it_shows() -> None:
    options = f"lowerdir+=/var/lib/layergate/meta/{ONE}/fs,datadir+=/var/lib/layergate/layers"
    assert not names(overlay(options, f"/var/lib/layergate/lazy/{LAZY}"))
    assert not names(overlay(options, f"/host/var/lib/layergate/lazy/{LAZY}"))


def test_bind_mounts_of_layers() -> None:
    assert names(bind(f"/lib/layergate/layers/{ONE}/fs")) == {ONE: {"/mnt"}}
    assert names(bind(f"/lib/layergate/layers/{ONE}/fs/usr")) == {ONE: {"/mnt"}}
    assert not names(bind(f"/lib/layergate/layers/{ONE}/fs", device="8:1"))
    assert not names(bind(f"/other/lib/layergate/layers/{ONE}/fs"))
    assert not names(bind("/lib/layergate/layers"))


def test_where_a_root_is() -> None:
    mounts = parse_mountinfo(
        b"27 1 254:0 / / rw - ext4 /dev/vda rw\n"
        b"42 27 7:0 /sub /var/lib rw - ext4 /dev/loop0 rw\n"
        b"43 27 7:1 / /var/library rw - ext4 /dev/loop1 rw\n"
    )
    assert Root.at("/var/lib/layergate", mounts).inner == "/sub/layergate"
    assert Root.at("/var/lib/layergate", mounts).device == (7, 0)
    assert Root.at("/var/lib", mounts).inner == "/sub"
    assert Root.at("/srv", mounts) == Root(frozenset({"/srv"}), (254, 0), "/srv")


def test_every_target_is_named() -> None:
    options = f"lowerdir={ONE}/fs"
    assert names(overlay(options, "/one"), overlay(options, "/two")) == {ONE: {"/one", "/two"}}


@contextmanager
def unmounted_after(*targets: Path) -> Iterator[None]:
    for target in targets:
        target.mkdir()
    try:
        yield
    finally:
        for target in reversed(targets):
            for _ in mounts_below(str(target)):
                detach(str(target))


def until_in_no_mount(root: str, layers: list[str]) -> None:
    """What makes a mount namespace has copies of this one's mounts: a container that starts, for a moment."""
    until(lambda: not layers_in_mounts(root, layers), "mounts that need none of these layers")


@pytest.mark.root
def test_real_mounts(tmp_path: Path) -> None:
    node = CachedNode(tmp_path)
    one, two, three, unused = (node.small(seed) for seed in range(4))
    native, bound = tmp_path / "native", tmp_path / "bound"
    everything = [one, two, three, unused]
    with unmounted_after(native, bound):
        assert layers_in_mounts(node.root, everything) == {}
        mount_overlay(str(native), lower=[node.store.fs(one), node.store.fs(two)], options={}, read_only=True)
        mount(node.store.fs(three), str(bound), "none", flags=4096)  # MS_BIND
        assert layers_in_mounts(node.root, everything) == {
            one: {str(native)},
            two: {str(native)},
            three: {str(bound)},
        }
        assert layers_in_mounts(node.root, [two]) == {two: {str(native)}}
    until_in_no_mount(node.root, everything)


@pytest.mark.root
def test_what_stands_on_a_lazy_lower_needs_its_layers(tmp_path: Path) -> None:
    node = CachedNode(tmp_path)
    one, two = node.small(1), node.small(2)
    for name in ("gate", "late"):
        os.mkdir(os.path.join(node.root, name))
    mounts = [Path(node.root, "meta"), tmp_path / "upper"]
    with unmounted_after(tmp_path / "container"):
        try:
            for layer in (one, two):
                ensure_meta(node.root, layer, node.store.tree(layer), MetaForm.EROFS)
            lower = mount_lazy_lower(node.root, [Meta(one), Meta(two)], "generation")
            assert layers_in_mounts(node.root, [one, two]) == {}
            mount_overlay(
                str(tmp_path / "container"), lower=[lower, str(mounts[0])], options={}, read_only=True
            )
            target = {str(tmp_path / "container")}
            assert layers_in_mounts(node.root, [one, two]) == {one: target, two: target}
            release_unused(node.root)
            assert not os.path.exists(lower)
            forget_released_lowers(node.root)
            assert layers_in_mounts(node.root, [one, two]) == {one: target, two: target}
            detach(str(tmp_path / "container"))
            until_in_no_mount(node.root, [one, two])
            forget_released_lowers(node.root)
            assert os.listdir(os.path.join(node.root, "lazy")) == ["lock"]
        finally:
            release_unused(node.root)


@pytest.mark.root
def test_mounts_of_other_namespaces_count(tmp_path: Path) -> None:
    node = CachedNode(tmp_path)
    layer = node.small(1)
    target = tmp_path / "target"
    target.mkdir()
    script = (
        f"mount -t overlay overlay -o lowerdir={node.store.fs(layer)}:{target} {target} && echo up && read x"
    )
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert layers_in_mounts(node.root, [layer]) == {layer: {str(target)}}
        process.stdin.close()
    assert layers_in_mounts(node.root, [layer]) == {}
