"""Real images in three forms, built once and cached; as a module, the tests' own is built.

| form | made by |
|---|---|
| plain | a recipe (recipe.py has the tests'), ordinary tar+gzip layers |
| estargz | Debian's `ctr-remote images convert --estargz` |
| optimized | Debian's `ctr-remote images optimize`, which watches the recipe's command and writes landmarks |

Each is an OCI layout in a directory of the cache entry, whose name has a hash of all that makes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.integration import recipe
from tests.integration.harness import Containerd, call
from tests.integration.layout import Layout

FORMS: Final = ("plain", "estargz", "optimized")

_SOURCES = ("image.py", "layout.py")


@dataclass(frozen=True, slots=True)
class RealImage:
    """The directory of each form's OCI layout."""

    plain: str
    estargz: str
    optimized: str


def real_image(say: Callable[[str], None] | None = None) -> RealImage:
    """The tests' image: `built_image` of recipe.PYTHON."""
    return built_image(recipe.PYTHON, say)


def built_image(wanted: recipe.Recipe, say: Callable[[str], None] | None = None) -> RealImage:
    """The image from the cache, built first where it is not there; needs root and takes minutes then.

    `say` is told of each step. Of several callers at a time one builds and the others wait.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    images = os.path.join(cache, "layergate", "images")
    entry = os.path.join(images, f"{wanted.name}-{_recipe_hash(wanted)}")
    os.makedirs(images, exist_ok=True)
    with open(f"{entry}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(entry):
            with tempfile.TemporaryDirectory(prefix="building-", dir=images) as directory:
                finished = os.path.join(directory, "finished")
                os.mkdir(finished)
                _build(wanted, directory, finished, say or (lambda _: None))
                os.rename(finished, entry)
    return RealImage(*(os.path.join(entry, form) for form in FORMS))


def _build(wanted: recipe.Recipe, directory: str, finished: str, say: Callable[[str], None]) -> None:
    root = os.path.join(directory, "root")
    os.mkdir(root, 0o755)
    layout = Layout(os.path.join(finished, "plain"), root)
    for step in wanted.steps:
        started = time.monotonic()
        step.run(root)
        entries = layout.commit(opaque=step.opaque)
        say(f"{wanted.name}, layer {step.title}: {entries:,} entries, {time.monotonic() - started:.0f} s")
    names = {form: f"layergate.test/{wanted.name}:{form}" for form in FORMS}
    layout.finish(names["plain"], {"Env": recipe.ENVIRONMENT, "Cmd": wanted.command})
    shutil.rmtree(root)
    # Not below `directory`: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="layergate-") as short, Containerd(short) as containerd:
        archive = os.path.join(directory, "archive.tar")
        call(["tar", "--create", f"--file={archive}", f"--directory={finished}/plain", "."], timeout=900)
        containerd.ctr("images", "import", archive, timeout=900)
        convert = ["convert", "--estargz", "--oci"]
        # The period bounds the watching; it ends when the workload does.
        optimize = [
            "optimize",
            "--oci",
            "--period=60",
            f"--entrypoint={json.dumps(wanted.command)}",
            "--args=[]",
        ]
        for form, command in (("estargz", convert), ("optimized", optimize)):
            started = time.monotonic()
            containerd.ctr(
                "images", *command, names["plain"], names[form], program="ctr-remote", timeout=1800
            )
            containerd.ctr("images", "export", "--skip-manifest-json", archive, names[form], timeout=900)
            # Not tarfile: its filters came with 3.11.4, and Debian 12 has 3.11.2.
            os.mkdir(os.path.join(finished, form))
            call(["tar", "-x", "-f", archive, "-C", os.path.join(finished, form)], timeout=900)
            say(f"{wanted.name}, {form}: {time.monotonic() - started:.0f} s")


def _recipe_hash(wanted: recipe.Recipe) -> str:
    here = os.path.dirname(__file__)
    digest = hashlib.sha256()
    for path in (*(os.path.join(here, name) for name in _SOURCES), *wanted.sources):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


def main() -> None:
    """Build it and print where it is."""

    def say(line: str) -> None:
        sys.stderr.write(f"image: {line}\n")

    image = real_image(say)
    sys.stdout.write(f"{image.plain}\n{image.estargz}\n{image.optimized}\n")


if __name__ == "__main__":
    main()
