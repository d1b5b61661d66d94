"""layergate's package as it is installed on a node, where another version may take its place."""

from __future__ import annotations

import os
import re
import shutil
from typing import Final

from fetcher.version import VERSION
from mounter.control import PROTOCOL
from tests.integration.processes import REPOSITORY

_PACKAGES: Final = ("fetcher", "mounter", "snapshotter")


class Package:
    """What is at `path`, a symlink; replaced at once, as programs that run go on loading from it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.install(VERSION)

    @property
    def environment(self) -> list[str]:
        """Under which Python loads from here."""
        return [f"PYTHONPATH={self._path}", "PYTHONSAFEPATH=1"]

    def install(self, version: str) -> None:
        """Put `version` in its place. One that is not ours speaks another protocol with its mounter, too."""
        fresh = f"{self._path}-{version}"
        for name in _PACKAGES:
            shutil.copytree(os.path.join(REPOSITORY, name), os.path.join(fresh, name))
        if version != VERSION:
            _replace(f"{fresh}/fetcher/version.py", rf'"{re.escape(VERSION)}"', f'"{version}"')
            _replace(
                f"{fresh}/mounter/control.py", rf"^PROTOCOL: Final = {PROTOCOL}$", "PROTOCOL: Final = -1"
            )
        os.symlink(fresh, f"{self._path}.new")
        os.rename(f"{self._path}.new", self._path)


def _replace(path: str, pattern: str, text: str) -> None:
    with open(path, encoding="utf-8") as file:
        source = file.read()
    changed, count = re.subn(pattern, text, source, flags=re.MULTILINE)
    assert count == 1, f"{path} does not say {pattern} once"
    with open(path, "w", encoding="utf-8") as file:
        file.write(changed)
