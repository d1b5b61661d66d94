"""doctor: what each host gets told, by hosts that are made up; one run looks at this machine."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mounter.meta import MetaForm
from mounter.mountinfo import mounts_below
from mounter.probe import Check, Mode, Probe
from snapshotter.containerd_host import Containerd
from snapshotter.doctor import as_dict, lazy_pulling_works, major, run_checks

ADDRESS = "/run/layergate/layergate.sock"
PLUGIN = f"""
[proxy_plugins.layergate]
type = "snapshot"
address = "{ADDRESS}"
"""
CRI_1 = """
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "layergate"
disable_snapshot_annotations = false
"""
CRI_2 = """
[plugins."io.containerd.cri.v1.images"]
snapshotter = "layergate"
disable_snapshot_annotations = false
"""
TRANSFER = """
[proxy_plugins.layergate.exports]
root = "/var/lib/layergate"
enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "layergate"
"""
GATE = Probe(Mode.GATE, "", MetaForm.EROFS, (Check("data-only layers", True, "work"),))
OLD_KERNEL = Check("data-only layers", False, "Invalid argument", "use Linux 6.5 or later")
STUB = Probe(Mode.STUB, "data-only layers: Invalid argument", MetaForm.TMPFS, (OLD_KERNEL,))
NO_FUSE = Check("FUSE", False, "no such device", "modprobe fuse")
NONE = Probe(Mode.NONE, "FUSE: no such device", MetaForm.TMPFS, (NO_FUSE,))


@dataclass
class Host:
    """A host; `doctor` looks at it. `config` None: there is no config.toml."""

    directory: str
    config: str | None = "version = 2\n" + PLUGIN + CRI_1
    containerd: Containerd = field(default_factory=lambda: Containerd("1.7.24", "running", True))
    probe: Probe = GATE
    free: int = 100 << 30
    probed: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return os.path.join(self.directory, "config.toml")

    def look(self, root: str = "/") -> list[Check]:
        if self.config is not None:
            with open(self.path, "w") as file:
                file.write(self.config)

        def try_mounts(directory: str) -> Probe:
            self.probed.append(directory)
            return self.probe

        return run_checks(
            root,
            self.path,
            address=ADDRESS,
            try_mounts=try_mounts,
            find=lambda: self.containerd,
            free_bytes=lambda _: self.free,
        )

    def check(self, name: str) -> Check:
        (found,) = (check for check in self.look() if check.name == name)
        return found

    def works(self) -> bool:
        return lazy_pulling_works(self.look())


@pytest.fixture
def host(tmp_path: os.PathLike[str]) -> Host:
    return Host(os.fspath(tmp_path))


def test_a_good_host_works_and_nothing_has_failed(host: Host) -> None:
    checks = host.look()
    assert lazy_pulling_works(checks)
    assert [check for check in checks if check.ok is False] == []
    assert host.check("kernel").detail.startswith("Linux ")
    assert host.check("mode").detail.startswith("gate:")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda host: setattr(host, "config", None),
        lambda host: setattr(host, "config", "version = 2\n"),
        lambda host: setattr(host, "config", "this is not TOML"),
        lambda host: setattr(host, "config", PLUGIN.replace("layergate.sock", "other.sock")),
        lambda host: setattr(host, "config", PLUGIN.replace("snapshot", "content")),
        lambda host: setattr(host, "containerd", Containerd(None, "nowhere", None)),
        lambda host: setattr(host, "containerd", Containerd("1.5.9", "running", True)),
        lambda host: setattr(host, "probe", NONE),
        lambda host: setattr(host, "free", 1 << 20),
    ],
)
def test_whatever_is_needed_and_missing_is_told_with_a_remedy(
    host: Host, spoil: Callable[[Host], None]
) -> None:
    spoil(host)
    assert not host.works()
    wrong = [check for check in host.look() if check.ok is not True]
    assert wrong
    assert all(check.remedy for check in wrong)


def test_an_old_kernel_gets_the_stub_is_told_why_and_still_works(host: Host) -> None:
    host.probe = STUB
    check = host.check("mode")
    assert check.ok
    assert "because data-only layers: Invalid argument" in check.detail
    assert "Linux 6.5" in check.remedy
    assert host.works()


def test_a_missing_containerd_is_a_warning(host: Host) -> None:
    host.containerd = Containerd(None, "neither running at /x nor on PATH", None)
    assert host.check("containerd").ok is None
    assert "install containerd" in host.check("containerd").remedy


def test_another_mount_namespace_is_a_warning_that_names_the_unit_options(host: Host) -> None:
    host.containerd = Containerd("1.7.24", "running", False)
    assert host.check("mount namespace").ok is None
    assert "PrivateMounts=" in host.check("mount namespace").remedy


@pytest.mark.parametrize(("free", "ok"), [(20 << 30, True), (5 << 30, None), (1 << 29, False)])
def test_free_space_warns_before_it_fails(host: Host, free: int, ok: bool | None) -> None:
    host.free = free
    assert host.check("free space").ok is ok


def test_other_plugins_are_named_where_ours_is_missing(host: Host) -> None:
    host.config = PLUGIN.replace("layergate", "stargz")
    check = host.check("proxy plugin")
    assert check.ok is False
    assert "there: stargz" in check.detail
    assert f'address = "{ADDRESS}"' in check.remedy


def test_a_plugin_of_another_type_is_told_so(host: Host) -> None:
    host.config = PLUGIN.replace('"snapshot"', '"content"')
    assert "has type 'content'" in host.check("proxy plugin").detail
    assert 'type = "snapshot"' in host.check("proxy plugin").remedy


@pytest.mark.parametrize(("version", "cri"), [("2", CRI_1), ("3", CRI_2)])
def test_kubernetes_is_ready_by_either_version_of_the_file(host: Host, version: str, cri: str) -> None:
    host.config = f"version = {version}\n{PLUGIN}{cri}"
    assert host.check("Kubernetes (CRI)").ok is True


@pytest.mark.parametrize(
    ("version", "table"),
    [
        ("2", 'plugins."io.containerd.grpc.v1.cri".containerd'),
        ("3", 'plugins."io.containerd.cri.v1.images"'),
    ],
)
def test_what_kubernetes_lacks_is_named_with_its_table(host: Host, version: str, table: str) -> None:
    host.config = f"version = {version}\n{PLUGIN}"
    check = host.check("Kubernetes (CRI)")
    assert check.ok is None
    assert f"[{table}]" in check.remedy
    assert 'snapshotter = "layergate"' in check.remedy
    assert "disable_snapshot_annotations = false" in check.remedy
    assert host.works()


def test_settings_of_the_other_version_do_not_count(host: Host) -> None:
    host.config = f"version = 3\n{PLUGIN}{CRI_1}"
    assert host.check("Kubernetes (CRI)").ok is None


@pytest.mark.parametrize("version", ["1.6.20~ds1", "v1.7.24"])
def test_before_2_ctr_is_sent_to_our_own_pull(host: Host, version: str) -> None:
    host.containerd = Containerd(version, "running", True)
    check = host.check("ctr images pull")
    assert check.ok is None
    assert "layergate pull" in check.remedy
    assert "enable_remote_snapshot_annotations" not in check.remedy


def test_from_2_on_ctr_needs_annotations_and_an_unpack_config(host: Host) -> None:
    host.containerd = Containerd("v2.1.9", "running", True)
    remedy = host.check("ctr images pull").remedy
    assert '[proxy_plugins.layergate.exports] enable_remote_snapshot_annotations = "true"' in remedy
    assert "unpack_config" in remedy
    assert host.check("image disk usage").ok is None

    host.config = f"version = 3\n{PLUGIN}{CRI_2}{TRANSFER}"
    assert host.check("ctr images pull").ok is True
    assert host.check("image disk usage").detail.endswith("/var/lib/layergate")


def test_nerdctl_wants_the_name_stargz(host: Host) -> None:
    assert "stargz" in host.check("nerdctl").remedy
    host.config = PLUGIN.replace("proxy_plugins.layergate", "proxy_plugins.stargz")
    assert host.check("nerdctl").ok is True


def test_imported_files_count(host: Host) -> None:
    os.mkdir(os.path.join(host.directory, "conf.d"))
    with open(os.path.join(host.directory, "conf.d", "layergate.toml"), "w") as file:
        file.write(PLUGIN)
    host.config = 'version = 2\nimports = ["conf.d/*.toml"]\n' + CRI_1
    assert host.works()
    assert host.check("Kubernetes (CRI)").ok is True


def test_the_probe_runs_in_the_nearest_directory_that_exists(host: Host) -> None:
    host.look(os.path.join(host.directory, "not", "made", "yet"))
    assert host.probed == [host.directory]


def test_the_record_for_json(host: Host) -> None:
    host.config = None
    record = json.loads(json.dumps(as_dict(host.look())))
    assert record["lazy_pulling_works"] is False
    plugin = record["checks"][-1]
    assert plugin["name"] == "proxy plugin"
    assert plugin["ok"] is False
    assert plugin["detail"] == f"there is no {host.path}"


@pytest.mark.parametrize(("version", "number"), [("v2.1.9", 2), ("1.6.20~ds1", 1), ("unknown", 0)])
def test_the_major_version(version: str, number: int) -> None:
    assert major(version) == number


@pytest.mark.root
def test_this_machine_is_looked_at_and_left_as_it_was() -> None:
    with tempfile.TemporaryDirectory() as directory:
        checks = run_checks(directory, os.path.join(directory, "config.toml"), address=ADDRESS)
        assert os.listdir(directory) == []
        assert mounts_below(directory) == []
    by_name = {check.name: check for check in checks}
    assert by_name["mode"].ok
    assert by_name["proxy plugin"].ok is False
