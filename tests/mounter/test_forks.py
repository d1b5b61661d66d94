"""What forked processes share with the one that they come from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

PROGRAM: Final = """
import gc, sys
from mounter import forks

def tell(path):
    before = gc.get_freeze_count()
    kept = [[number] for number in range(5000)]
    child = forks.Child(lambda: int(gc.get_freeze_count() < before + 5000))
    with open(path, "w") as file:
        print(before, child.wait(), file=file)

if __name__ == "__main__":
    forks.start_fork_server(["json"])
    forks.close(forks.start(tell, sys.argv[1]), 20)
"""


def test_the_collector_leaves_alone_what_is_shared(tmp_path: Path) -> None:
    packages = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = tmp_path / "told"
    subprocess.run(
        [sys.executable, str(program), str(told)],
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": packages},
    )
    from_fork_server, status = map(int, told.read_text().split())
    assert from_fork_server > 5000, "what the fork server has loaded"
    assert status == 0, "what a process had made when it forked"
