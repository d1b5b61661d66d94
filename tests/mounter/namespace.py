"""Another mount namespace, as `unshare --mount` makes one."""

from __future__ import annotations

import subprocess
from typing import Self

from tests.mounter.mounts import read


class Namespace:
    """A process in a mount namespace of its own, for as long as the block lasts.

    `propagation`: "slave", which gets the events of this one, or "private".
    """

    def __init__(self, propagation: str) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", propagation, "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(b"", timeout=10)

    @property
    def root(self) -> str:
        """Its root directory, as it is seen from here."""
        return f"/proc/{self._process.pid}/root"

    def sees(self, target: str) -> bool:
        """Whether something is mounted on `target` in there."""
        return f" {target} ".encode() in read(f"/proc/{self._process.pid}/mountinfo")
