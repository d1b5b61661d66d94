"""Every target of the fuzzer, in short: what it is meant for, with a few bytes changed; and the fuzzer."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.integration.processes import REPOSITORY, python


@given(data=st.data())
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_bytes_make_a_target_fail(name: str, data: st.DataObject) -> None:
    target = TARGETS[name]
    seed = bytearray(data.draw(st.sampled_from([*target.seeds])))
    for _ in range(data.draw(st.integers(0, 3))):
        begin = data.draw(st.integers(0, len(seed)))
        end = data.draw(st.integers(begin, min(len(seed), begin + 8)))
        seed[begin:end] = data.draw(st.binary(max_size=8))
    target.read(bytes(seed))
    target.read(data.draw(st.binary(max_size=64)))


def test_the_fuzzer_fuzzes_where_it_can_be_had(tmp_path: Path) -> None:
    command = python("tests.fuzz", "footer", "--seconds", "1", "--corpus", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if importlib.util.find_spec("atheris"):
        assert done.returncode == 0, done.stdout + done.stderr
        assert int(done.stdout.split()[1]) > 1000
        assert len(list((tmp_path / "footer").iterdir())) > 1, "no input that reaches more was found"
    else:
        assert done.returncode == 1
        assert "atheris is not installed: pip install atheris" in done.stdout
