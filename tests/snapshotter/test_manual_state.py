"""ROOT/mounts: states that tell the truth, whatever became of what they tell of."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from fetcher.store import boot_id
from mounter.mountinfo import Mount, read_mounts
from mounter.syscalls import detach, mount
from snapshotter.manual.errors import MountedAlready, MountpointMissing, MountpointNotEmpty
from snapshotter.manual.release import forget_gone
from snapshotter.manual.request import MountRequest, claim
from snapshotter.manual.state import ManualMounts, MountKind, MountState, mount_namespace
from snapshotter.manual.upper import check_upper, make_upper, remove_work, user_of, work_path
from snapshotter.processes import Process

_MS_BIND = 4096


def state(**changes: object) -> MountState:
    made = MountState(
        id="0123456789ab",
        mountpoint="/nowhere",
        source="oci:/layout:tag",
        alone=False,
        rw=None,
        made_rw=False,
        keeper=None,
        namespace=mount_namespace(),
        boot=boot_id(),
        since=time.time(),
    )
    return msgspec.structs.replace(made, **changes)


@pytest.fixture
def mounts(tmp_path: Path) -> ManualMounts:
    mounts = ManualMounts(str(tmp_path / "root"))
    mounts.create_directories()
    return mounts


def ended() -> Process:
    """A process that has ended and been waited for."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as stat:
            start = int(stat.read().rpartition(")")[2].split()[19])
        process.kill()
    return Process(process.pid, start)


class TestStates:
    """What is alive."""

    def test_what_was_written_is_read(self, mounts: ManualMounts) -> None:
        one, other = state(id="1", mountpoint="/b"), state(id="2", mountpoint="/a", mounts=[7])
        for written in (one, other):
            mounts.write(written)
        assert mounts.all() == [other, one]
        assert mounts.on("/a") == [other]
        mounts.forget(one.id)
        mounts.forget(one.id)
        assert mounts.all() == [other]

    def test_a_root_without_mounts_has_none(self, tmp_path: Path) -> None:
        assert ManualMounts(str(tmp_path / "none")).all() == []

    def test_a_damaged_state_is_left_out(self, mounts: ManualMounts) -> None:
        Path(mounts.directory, "x.json").write_text("{")
        assert mounts.all() == []

    def test_a_process_is_known_by_its_start(self) -> None:
        me = Process.current()
        assert me.pid == os.getpid()
        assert me.runs()
        assert not Process(me.pid, me.start_time + 1).runs()
        assert not ended().runs()

    def test_a_process_that_nobody_has_waited_for_has_ended(self) -> None:
        with subprocess.Popen(["true"]) as process:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            with open(f"/proc/{process.pid}/stat", encoding="ascii") as stat:
                start = int(stat.read().rpartition(")")[2].split()[19])
            assert not Process(process.pid, start).runs()

    @pytest.mark.parametrize(
        ("changes", "alive"),
        [
            ({}, False),
            ({"keeper": Process.current()}, True),
            ({"keeper": Process.current(), "boot": "another"}, False),
            ({"namespace": "mnt:[1]"}, False),
            ({"mounts": [1 << 30], "kind": MountKind.NATIVE}, False),
        ],
        ids=["nothing", "kept", "rebooted", "in a namespace that is gone", "unmounted"],
    )
    def test_what_is_alive(self, changes: dict[str, object], alive: bool) -> None:
        assert state(**changes).alive() is alive

    @pytest.mark.root
    def test_in_another_namespace_there_may_be_one_for_as_long_as_the_namespace_is_there(
        self, tmp_path: Path
    ) -> None:
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", "readlink /proc/self/ns/mnt; read x"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            elsewhere = state(namespace=process.stdout.readline().strip(), mounts=[1 << 30])
            assert elsewhere.alive()
            assert not msgspec.structs.replace(elsewhere, boot="another").alive()
            kept = tmp_path / "namespace"
            kept.touch()
            mount(f"/proc/{process.pid}/ns/mnt", str(kept), "none", flags=_MS_BIND)
            try:
                process.communicate("\n")
                assert elsewhere.alive()
            finally:
                detach(str(kept))
        assert not elsewhere.alive()

    def test_a_mount_whose_keeper_was_killed_is_orphaned(self) -> None:
        (some, *_) = read_mounts()
        there = {"mountpoint": some.target, "mounts": [some.id]}
        assert state(keeper=ended(), **there).orphaned()
        assert not state(keeper=Process.current(), **there).orphaned()
        assert not state(keeper=None, **there).orphaned(), "it is complete"
        assert not state(keeper=ended()).orphaned(), "it is gone"

    def test_all_that_belongs_to_a_mount_is_forgotten_with_it(self, mounts: ManualMounts) -> None:
        for name in ("1", "12"):
            mounts.write(state(id=name))
            for suffix in ("log", "json.0a1b2c3d"):
                Path(mounts.directory, f"{name}.{suffix}").touch()
            for path in (mounts.below(name), mounts.above(name)):
                os.makedirs(f"{path}/inside")
        mounts.forget("1")
        assert {name.partition(".")[0] for name in os.listdir(mounts.directory)} == {"12"}

    def test_what_has_no_state_is_a_stray_unless_it_is_about_to_get_one(self, mounts: ManualMounts) -> None:
        mounts.write(state(id="1"))
        for name in ("1.log", "2.log", "3.json.0a1b2c3d", "4.log", "lock"):
            Path(mounts.directory, name).touch()
        os.mkdir(mounts.below("5"))
        with open(mounts.log("4"), "rb") as log:
            fcntl.flock(log, fcntl.LOCK_SH)
            assert mounts.strays() == ["2", "3", "5"]
        assert mounts.strays() == ["2", "3", "4", "5"]
        forget_gone(mounts)
        assert os.listdir(mounts.directory) == ["lock"]


class TestClaims:
    """One wish for one mountpoint."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Path:
        path = tmp_path.resolve() / "target"
        path.mkdir()
        return path

    def request(self, mounts: ManualMounts, target: Path, **changes: object) -> MountRequest:
        wish = MountRequest(id="1", root=mounts.root, source="python", mountpoint=str(target))
        return msgspec.structs.replace(wish, **changes)

    def test_a_claim_is_written(self, mounts: ManualMounts, target: Path) -> None:
        made = claim(mounts, self.request(mounts, target, rw=str(target.parent / "upper"), layer="1"))
        assert mounts.all() == [made]
        assert (made.kind, made.alone, made.made_rw, made.keeper) == (
            MountKind.STARTING,
            True,
            True,
            Process.current(),
        )

    def test_a_mountpoint_must_be_an_empty_directory(self, mounts: ManualMounts, target: Path) -> None:
        (target / "file").touch()
        with pytest.raises(MountpointNotEmpty, match="'file'"):
            claim(mounts, self.request(mounts, target))
        with pytest.raises(MountpointMissing, match="is no directory"):
            claim(mounts, self.request(mounts, target / "file"))
        with pytest.raises(MountpointMissing, match="there is no directory"):
            claim(mounts, self.request(mounts, target / "none"))
        with pytest.raises(MountedAlready):
            claim(mounts, self.request(mounts, Path("/proc")))
        assert mounts.all() == []

    def test_a_second_claim_is_refused(self, mounts: ManualMounts, target: Path) -> None:
        claim(mounts, self.request(mounts, target))
        with pytest.raises(MountedAlready, match="another `layergate mount` is at work"):
            claim(mounts, self.request(mounts, target, id="2"))

    def test_an_upper_directory_is_for_one_mount(self, mounts: ManualMounts, target: Path) -> None:
        upper, other = str(target.parent / "upper"), target.parent / "other"
        other.mkdir()
        claim(mounts, self.request(mounts, target, rw=upper))
        with pytest.raises(MountedAlready, match="is the upper directory of"):
            claim(mounts, self.request(mounts, other, id="2", rw=upper))


class TestUpperDirectories:
    """What --rw may name, and what is made beside it."""

    def test_work_directories_are_made_beside_it_and_go_again(self, tmp_path: Path) -> None:
        upper = str(tmp_path / "upper")
        make_upper(upper)
        assert work_path(upper) == str(tmp_path / ".upper.layergate-work")
        assert sorted(os.listdir(work_path(upper))) == ["lazy", "native"]
        Path(work_path(upper), "lazy", "old").touch()
        make_upper(upper)
        assert os.listdir(f"{work_path(upper)}/lazy") == []
        for _ in range(2):
            remove_work(upper)
        assert os.listdir(tmp_path) == ["upper"]

    def test_it_and_the_mountpoint_may_not_be_in_each_other(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.mkdir()
        for upper in (target, target / "upper", tmp_path):
            with pytest.raises(MountedAlready, match="are in each other"):
                check_upper(str(upper), str(target))
        check_upper(str(tmp_path / "target-upper"), str(target))

    def test_it_or_its_parent_must_be_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for upper in (tmp_path / "file", tmp_path / "none" / "upper"):
            with pytest.raises(MountpointMissing):
                check_upper(str(upper), "/mnt")

    def test_the_overlay_that_has_it_is_found(self) -> None:
        def overlay(target: str, *options: str) -> Mount:
            return Mount(1, 0, (0, 1), "/", target, ("rw",), False, "overlay", "x", options)

        mounts = [overlay("/a", "rw", "upperdir=/u2"), overlay("/b", "rw", "upperdir=/u", "workdir=/w")]
        assert user_of(mounts, "/u") == "/b"
        assert user_of(mounts, "/other") is None
