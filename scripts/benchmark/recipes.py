"""The images that `scripts/bench full` measures, and the workload of each.

They hold what comes with such work, not what the workload needs alone: most of an image is never read.

| image | holds | workload |
|---|---|---|
| python | Debian's Python, and packages for data analysis from PyPI | imports numpy, pandas and scipy |
| dev | Debian's compilers, headers, git and node, and packages from npm | gcc compiles a file and runs it |
| ml | python, and packages for learning from PyPI, torch for the CPU | imports torch, one operation |
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from tests.integration import recipe
from tests.integration.image import built_image
from tests.integration.recipe import Recipe, Step, debian, install_debs, install_wheels, interpreter

_ANALYSIS: Final = (
    "numpy==1.26.4",
    "pandas==2.2.2",
    "scipy==1.13.1",
    "scikit-learn==1.5.0",
    "matplotlib==3.9.0",
    "pyarrow==16.1.0",
    "statsmodels==0.14.2",
)
_LEARNING: Final = (
    "onnxruntime==1.18.0",
    "opencv-python-headless==4.10.0.84",
    "transformers==4.41.2",
    "polars==0.20.31",
    "xgboost-cpu==2.1.1",
    "sympy==1.13.3",
    "networkx==3.3",
    "jinja2==3.1.4",
)
_TORCH: Final = ("torch==2.13.0+cpu", "--no-deps", "--extra-index-url=https://download.pytorch.org/whl/cpu")
"""What it depends on is in _LEARNING."""
_TOOLS: Final = (
    "build-essential",
    "gfortran",
    "cmake",
    "gdb",
    "git",
    "libboost-dev",
    "libssl-dev",
    "libicu-dev",
    "nodejs",
    "npm",
    "ca-certificates",
)
_NODE_PACKAGES: Final = ("typescript@5.4.5", "eslint@8.57.0", "webpack@5.91.0", "prettier@3.2.5")
_SOURCE: Final = "usr/src/hello.c"
_PROGRAM: Final = b"""\
#include <stdio.h>

int main(void)
{
    return puts("compiled") < 0;
}
"""


def _analysis(root: str) -> None:
    install_wheels(root, *_ANALYSIS)


def _learning(root: str) -> None:
    install_wheels(root, *_LEARNING, *_ANALYSIS)  # those that are there already stay


def _torch(root: str) -> None:
    install_wheels(root, *_TORCH, uncompiled="py312")  # a file for later interpreters is among its tests


def _tools(root: str) -> None:
    install_debs(root, *_TOOLS)


def _node_packages(root: str) -> None:
    """By npm in the root itself, with this machine's certificates, should its registry be one of its own."""
    home = f"{root}/npm"
    os.mkdir(home)
    shutil.copyfile("/etc/ssl/certs/ca-certificates.crt", f"{home}/certificates.pem")
    shutil.copyfile("/etc/resolv.conf", f"{root}/etc/resolv.conf")
    npm = "npm install --global --no-audit --no-fund --cache=/npm/cache"
    script = f"HOME=/npm NODE_EXTRA_CA_CERTS=/npm/certificates.pem {npm} {' '.join(_NODE_PACKAGES)}"
    recipe.isolated(["chroot", root, "sh", "-c", script])
    shutil.rmtree(home)
    os.unlink(f"{root}/etc/resolv.conf")
    with open(f"{root}/{_SOURCE}", "wb") as file:
        file.write(_PROGRAM)


_PYTHON: Final = (Step("Debian", debian), Step("Python", interpreter), Step("data analysis", _analysis))
_SOURCES: Final = (recipe.__file__, __file__)

IMAGES: Final = {
    image.name: image
    for image in (
        Recipe(
            name="python",
            steps=_PYTHON,
            command=(
                "python3",
                "-c",
                "import numpy, pandas, scipy, scipy.linalg, scipy.optimize, scipy.stats; "
                "print(numpy.__version__, pandas.__version__, scipy.__version__)",
            ),
            output="1.26.4 2.2.2 1.13.1\n",
            sources=_SOURCES,
        ),
        Recipe(
            name="dev",
            steps=(Step("Debian", debian), Step("tools", _tools), Step("node packages", _node_packages)),
            command=("sh", "-c", f"gcc -O2 -o /tmp/hello /{_SOURCE} && /tmp/hello"),
            output="compiled\n",
            sources=_SOURCES,
        ),
        Recipe(
            name="ml",
            steps=(*_PYTHON, Step("machine learning", _learning), Step("torch", _torch)),
            command=("python3", "-c", "import torch; print(int(torch.arange(10).sum()))"),
            output="45\n",
            sources=_SOURCES,
        ),
    )
}


def main() -> None:
    """Build the images named, or all of them, and print where they are."""

    def say(line: str) -> None:
        sys.stderr.write(f"image: {line}\n")

    for name in sys.argv[1:] or IMAGES:
        image = built_image(IMAGES[name], say)
        sys.stdout.write(f"{image.plain}\n{image.estargz}\n{image.optimized}\n")


if __name__ == "__main__":
    main()
