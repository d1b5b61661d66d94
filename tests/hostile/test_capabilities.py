"""What a process can do no more once it has given up what it does not need: in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from mounter.capabilities import MOUNTER, SERVE, Capability

pytestmark = pytest.mark.root

REPOSITORY: Final = str(Path(__file__).parents[2])
PROGRAM: Final = """
import json, os, subprocess, sys
from mounter import capabilities

def sets(text):
    lines = [line.split() for line in text.splitlines() if line.startswith("Cap")]
    return {name.strip(":"): [bit for bit in range(64) if int(value, 16) >> bit & 1] for name, value in lines}

def tried(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return 0

capabilities.keep_capabilities(getattr(capabilities, sys.argv[1]))
os.chdir(sys.argv[2])
done = {
    "mknod": tried(os.mknod, "device", 0o20600, os.makedev(1, 3)),
    "chroot": tried(os.chroot, "/"),
}
open("file", "w").close()
done["chown"] = tried(os.chown, "file", 1000, 1000)
done["chmod"] = tried(os.chmod, "file", 0o6755)
mode = os.stat("file").st_mode
done["setgid is kept"] = mode & 0o7777 == 0o6755
done["chown back"] = tried(os.chown, "file", 7, 7)
done["own"] = sets(open("/proc/self/status").read())
done["program"] = sets(subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout)
done["setuid"] = tried(os.setuid, 1000)
print(json.dumps(done))
"""


def tried(kept: str, directory: Path, *, under: Sequence[str] = ()) -> tuple[dict[str, object], str]:
    """What a process with these capabilities found that it can do, and what it logged."""
    ran = subprocess.run(
        [*under, sys.executable, "-c", PROGRAM, kept, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": REPOSITORY},
    )
    return json.loads(ran.stdout), ran.stderr


@pytest.mark.parametrize(("kept", "mknod"), [("SERVE", 0), ("MOUNTER", 1)])
def test_what_is_needed_works_and_the_rest_does_not(tmp_path: Path, kept: str, mknod: int) -> None:
    done, said = tried(kept, tmp_path)
    assert done["mknod"] == mknod
    assert (done["chroot"], done["setuid"]) == (1, 1)
    assert (done["chown"], done["chmod"], done["chown back"]) == (0, 0, 0)
    assert done["setgid is kept"]
    assert said == ""


@pytest.mark.parametrize(("kept", "allowed"), [("SERVE", SERVE), ("MOUNTER", MOUNTER)])
def test_programs_that_it_starts_get_no_more(
    tmp_path: Path, kept: str, allowed: frozenset[Capability]
) -> None:
    done, _ = tried(kept, tmp_path)
    for whose in ("own", "program"):
        sets = done[whose]
        assert isinstance(sets, dict)
        assert set(sets) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
        for name, bits in sets.items():
            assert set(bits) <= allowed, f"{whose} {name}"
        assert Capability.SYS_ADMIN in sets["CapEff"]


def test_where_it_may_give_up_nothing_it_says_so_and_goes_on(tmp_path: Path) -> None:
    done, said = tried("SERVE", tmp_path, under=["setpriv", "--bounding-set=-setpcap"])
    assert "event=capabilities_not_dropped" in said
    assert done["chown"] == 0


def test_where_nothing_is_to_be_given_up_it_says_nothing(tmp_path: Path) -> None:
    """As under a systemd unit with CapabilityBoundingSet."""
    names = ",".join(f"+{capability.name.lower()}" for capability in SERVE - {Capability.SETPCAP})
    done, said = tried("SERVE", tmp_path, under=["setpriv", f"--bounding-set=-all,{names}"])
    assert said == ""
    assert done["mknod"] == 0
