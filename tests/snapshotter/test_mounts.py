"""Which mounts containerd is told to make."""

from __future__ import annotations

import pytest

from snapshotter.errors import FailedPrecondition
from snapshotter.lowers import Lowerdirs
from snapshotter.mounts import Mount, compose

NONE = Lowerdirs(())
ONE = Lowerdirs(("/r/snapshots/1/fs",))
TWO = Lowerdirs(("/r/snapshots/2/fs", "/r/snapshots/1/fs"))


def active(lowers: Lowerdirs, *, index_off: bool = True) -> Mount:
    (mount,) = compose(upper="/r/9/fs", work="/r/9/work", lowers=lowers, index_off=index_off)
    return mount


def view(lowers: Lowerdirs) -> Mount:
    (mount,) = compose(upper="/r/9/fs", work=None, lowers=lowers, index_off=True)
    return mount


def test_forms() -> None:
    assert active(NONE) == Mount("bind", "/r/9/fs", ("rw", "rbind"))
    assert view(NONE) == Mount("bind", "/r/9/fs", ("ro", "rbind"))
    assert view(ONE) == Mount("bind", "/r/snapshots/1/fs", ("ro", "rbind"))
    assert view(TWO).options == ("lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs", "index=off")
    assert active(ONE).options == (
        "workdir=/r/9/work",
        "upperdir=/r/9/fs",
        "lowerdir=/r/snapshots/1/fs",
        "index=off",
    )
    assert active(TWO, index_off=False).options[-1] == "lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs"
    assert {active(TWO).type, active(TWO).source, view(TWO).type} == {"overlay"}


def test_inode_numbers_above_a_lazy_lower() -> None:
    lazy = Lowerdirs(("/r/lazy/7",), lazy=True)
    assert active(lazy).options[-1] == "xino=on"
    assert view(lazy) == Mount("bind", "/r/lazy/7", ("ro", "rbind"))
    assert "xino=on" not in active(ONE).options


@pytest.mark.parametrize("path", ["", "/with:colon", "/with,comma", "/with\\backslash"])
def test_paths_that_an_option_string_cannot_carry(path: str) -> None:
    with pytest.raises(FailedPrecondition, match="lower directory"):
        active(Lowerdirs(("/fine", path)))


def test_limits() -> None:
    short = tuple(f"/var/lib/layergate/snapshots/{number}/fs" for number in range(501))
    assert active(Lowerdirs(short[:127]))
    assert active(Lowerdirs(short[:500]))  # 4000 bytes once they are named from their common directory
    with pytest.raises(FailedPrecondition, match="501 lower directories"):
        active(Lowerdirs(short))
    keys = tuple(f"/var/lib/layergate/layers/{number:020}/fs" for number in range(200))
    assert active(Lowerdirs(keys[:127]))
    with pytest.raises(FailedPrecondition, match="mount options of"):
        active(Lowerdirs(keys))
