"""The root file system of the real image: a Debian with Python, packages, an application, and oddities.

Each step changes the directory and is a layer of its own. Everything runs in a mount
namespace of its own, so that nothing stays mounted, whatever ends it.
"""

from __future__ import annotations

import os
import random
import shutil
import stat
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.integration.harness import call

SUITE: Final = "bookworm"
REQUIREMENTS: Final = (
    "numpy==1.26.4",
    "requests==2.32.3",
    "pandas==2.2.2",
    "jinja2==3.1.4",
    "pyyaml==6.0.1",
    "rich==13.7.1",
)
WORKLOAD: Final = (
    "import json, numpy, requests, ssl; "
    "print(json.dumps({'sum': int(numpy.arange(10).sum()), 'requests': requests.__version__, "
    "'ssl': ssl.HAS_SNI}))"
)
"""What demo, tests and benchmarks run, and what the optimized image was optimized for."""
OUTPUT: Final = '{"sum": 45, "requests": "2.32.3", "ssl": true}\n'
COMMAND: Final = ("python3", "-c", WORKLOAD)
ENVIRONMENT: Final = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
LARGE_FILE: Final = "srv/data/large.txt"
LARGE_SIZE: Final = 40 << 20

_PACKAGES = "usr/local/lib/python3.11/dist-packages"


@dataclass(frozen=True, slots=True)
class Step:
    """One layer: what it does to the root file system, and the directories in it that become opaque."""

    title: str
    run: Callable[[str], None]
    opaque: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an image is made, and the workload that it is optimized for and measured with."""

    name: str
    steps: tuple[Step, ...]
    command: tuple[str, ...]
    output: str
    """What `command` prints."""
    sources: tuple[str, ...]
    """The files that say how; a change in one of them makes another image."""


def debian(root: str) -> None:
    """The smallest Debian, from this machine's mirror."""
    isolated(["debootstrap", "--variant=minbase", SUITE, root, debian_mirror()])
    for name in os.listdir(f"{root}/var/cache/apt/archives"):
        if name.endswith(".deb"):
            os.unlink(f"{root}/var/cache/apt/archives/{name}")
    shutil.rmtree(f"{root}/var/lib/apt/lists")
    os.makedirs(f"{root}/var/lib/apt/lists/partial")
    # debootstrap copies these two from the machine that it runs on.
    os.unlink(f"{root}/etc/resolv.conf")
    _write(f"{root}/etc/hostname", b"debian\n")


def interpreter(root: str) -> None:
    """Debian's Python."""
    install_debs(root, "python3", "ca-certificates")


def packages(root: str) -> None:
    """Python packages from PyPI."""
    install_wheels(root, *REQUIREMENTS)


def install_debs(root: str, *names: str) -> None:
    """Install Debian packages, by apt in the root itself."""
    shutil.copyfile("/etc/resolv.conf", f"{root}/etc/resolv.conf")
    apt = "apt-get -qq -o Acquire::Languages=none"
    install = f"{apt} update && {apt} install --yes --no-install-recommends {' '.join(names)}"
    isolated(
        ["chroot", root, "sh", "-c", f"export DEBIAN_FRONTEND=noninteractive; {install} && apt-get clean"]
    )
    shutil.rmtree(f"{root}/var/lib/apt/lists")
    os.unlink(f"{root}/etc/resolv.conf")


def install_wheels(root: str, *arguments: str, uncompiled: str = "$^") -> None:
    """Install wheels for the root's interpreter, and compile them there; `arguments` are for pip.

    Files whose paths match the regular expression `uncompiled` are not compiled.
    """
    options = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore", "--no-compile"]
    wheels = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
    target = f"--target={root}/{_PACKAGES}"
    call([sys.executable, "-m", "pip", "install", *options, *wheels, target, *arguments], timeout=900)
    isolated(["chroot", root, "python3", "-m", "compileall", "-q", "-x", uncompiled, f"/{_PACKAGES}"])


def application(root: str) -> None:
    """An application, and one of each thing that a layer can hold or hide."""
    top = f"{root}/srv/app"
    os.makedirs(top)
    _write(f"{top}/main.py", f"{WORKLOAD}\n".encode())
    _write(f"{top}/empty", b"")
    _write(f"{top}/a name with blanks and ünïcödé ☃", b"read me\n")
    _write(f"{top}/read only by its owner", b"secret\n", mode=0o400, owner=(1000, 1001))
    _write(f"{top}/suid", b"#!/bin/sh\n", mode=0o4755)
    _write(f"{top}/sgid", b"#!/bin/sh\n", mode=0o2755, owner=(0, 42))
    _write(f"{top}/linked", b"one inode, three names\n")
    os.makedirs(f"{top}/links")
    os.link(f"{top}/linked", f"{top}/links/second")
    os.link(f"{top}/linked", f"{top}/links/third")
    os.symlink("main.py", f"{top}/relative symlink")
    os.symlink("/srv/app/linked", f"{top}/absolute symlink")
    os.symlink("nowhere", f"{top}/dangling symlink")
    os.lchown(f"{top}/dangling symlink", 1000, 1000)
    os.mknod(f"{top}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(f"{top}/loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.mkfifo(f"{top}/fifo", 0o620)
    _write(f"{top}/capable", b"#!/bin/sh\n", mode=0o755)
    os.setxattr(f"{top}/capable", "security.capability", _net_bind_service())
    _write(f"{top}/described", b"has extended attributes\n")
    os.setxattr(f"{top}/described", "user.text", "naïve".encode())
    os.setxattr(f"{top}/described", "user.binary", bytes(range(256)))
    os.makedirs(f"{top}/sticky")
    os.chmod(f"{top}/sticky", 0o1777)
    os.setxattr(f"{top}/sticky", "user.kind", b"directory")
    os.makedirs(f"{root}/{os.path.dirname(LARGE_FILE)}")
    # Hexadecimal digits of fixed random bytes: compresses to somewhat more than a half.
    _write(f"{root}/{LARGE_FILE}", random.Random(3).randbytes(LARGE_SIZE // 2).hex().encode())
    os.utime(f"{root}/{LARGE_FILE}", (1_000_000_000, 1_000_000_000))
    _hide_lower(root)


def _hide_lower(root: str) -> None:
    """What a layer can do to those below: remove a file and a directory, replace kinds, empty a directory."""
    os.unlink(f"{root}/etc/issue.net")
    shutil.rmtree(f"{root}/usr/share/doc/gzip")
    shutil.rmtree(f"{root}/etc/skel")
    os.mkdir(f"{root}/etc/skel")
    _write(f"{root}/etc/skel/only this", b"an opaque directory\n")
    os.rmdir(f"{root}/media")
    _write(f"{root}/media", b"was a directory\n")
    os.unlink(f"{root}/etc/debian_version")
    os.mkdir(f"{root}/etc/debian_version")
    _write(f"{root}/etc/debian_version/inside", b"was a file\n")
    os.unlink(f"{root}/etc/issue")
    os.symlink("os-release", f"{root}/etc/issue")
    os.chmod(f"{root}/usr/share/doc/bash/copyright", 0o640)
    os.rename(f"{root}/usr/share/doc/sed", f"{root}/usr/share/doc/sed renamed")


STEPS: Final = (
    Step("Debian", debian),
    Step("Python", interpreter),
    Step("packages", packages),
    Step("application", application, opaque=("etc/skel",)),
)
PYTHON: Final = Recipe(name="python", steps=STEPS, command=COMMAND, output=OUTPUT, sources=(__file__,))


def debian_mirror() -> str:
    """The mirror from which this machine's apt takes SUITE; raises LookupError."""
    targets = call(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(CREATED_BY) $(REPO_URI)"]
    )
    for line in targets.splitlines():
        codename, component, created_by, mirror = line.split(" ", 3)
        if (codename, component, created_by) == (SUITE, "main", "Packages"):
            return mirror
    raise LookupError(f"no apt source of this machine has {SUITE} main: add one to build the image from")


def isolated(command: list[str]) -> None:
    """Run a command; what it mounts goes with it."""
    call(["unshare", "--mount", "--propagation=private", *command], timeout=900)


def _write(path: str, content: bytes, *, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    with open(path, "wb") as file:
        file.write(content)
        os.chown(file.fileno(), *owner)
        os.chmod(file.fileno(), mode)


def _net_bind_service() -> bytes:
    """CAP_NET_BIND_SERVICE, permitted and effective: vfs_cap_data of linux/capability.h, revision 2."""
    return struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
