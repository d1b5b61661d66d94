"""What a test needs of the machine: skipped with the reason where it is missing, failed in CI."""

from __future__ import annotations

import os
import shutil
import signal

import hypothesis
import pytest

# A deadline for one example is a timing: machines are noisy, and a timing is no test.
hypothesis.settings.register_profile("layergate", deadline=None)
hypothesis.settings.load_profile("layergate")

# A shell ignores SIGINT for what runs in its background, and so would everything that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_PROGRAMS = ("containerd", "ctr", "ctr-remote", "runc", "docker-registry", "skopeo", "debootstrap")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The marks `root` and `containerd`; scripts/install --dev makes a machine that has both."""
    missing = []
    if item.get_closest_marker("root") or item.get_closest_marker("containerd"):
        missing += _missing_for_root()
    if item.get_closest_marker("containerd"):
        missing += [f"the program {program}" for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        message = f"not tested, for want of {', '.join(missing)}: {item.name}"
        if os.environ.get("CI"):
            pytest.fail(f"{message} (in CI nothing may be left out)", pytrace=False)
        pytest.skip(message)


def _missing_for_root() -> list[str]:
    missing = []
    if os.geteuid() != 0:
        missing.append("root")
    if not os.path.exists("/dev/fuse"):
        missing.append("/dev/fuse")
    return missing
