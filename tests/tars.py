"""Tars of layers as odd as the kernel lets them be unpacked: every kind of entry, in every form of tar."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import tarfile
import tempfile
from typing import Final

from tests.fetcher.converting import hardlink, member, symlink, tar_of

FORMATS: Final = {"USTAR": tarfile.USTAR_FORMAT, "PAX": tarfile.PAX_FORMAT, "GNU": tarfile.GNU_FORMAT}
PREFIXES: Final = ("", "./", "/", "../")
CHUNK: Final = 1 << 16
NOISE: Final = random.Random(7).randbytes(3 * CHUNK + 5)
HOLES: Final = NOISE[:4096].ljust(1 << 20, b"\0") + NOISE[:4096].ljust(1_500_000, b"\0")
"""What is in the sparse file."""
CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability: cap_net_bind_service, effective and permitted."""
_LONG: Final = (f"{'d' * 60}/{'e' * 59}", f"{'d' * 75}/{'e' * 74}", f"{'d' * 155}/{'e' * 99}")
IMPLIED: Final = (
    "missing",
    "missing/parents",
    "missing/parents/of",
    *(name.partition("/")[0] for name in _LONG),
)
"""Directories that have no entry of their own."""

_SPARSE: Final = {"PAX": "posix", "GNU": "gnu"}
_END: Final = bytes(1024)


def odd_tar(prefix: str, form: str, *, sparse: bool) -> bytes:
    """One of everything that the form can say, each name behind `prefix`.

    `sparse` archives one file as sparse, where the form has such, and else as the whole file that it is:
    containerd 1.6 unpacks none of GNU tar's sparse files, and ctr-remote converts none at all.
    """
    p = prefix
    entries = [
        member(f"{p}usr/", mode=0o751, uid=3, gid=4),
        member(f"{p}usr/bin/", mode=0o755),
        member(f"{p}usr/bin/tool", b"#!/bin/sh\n", mode=0o4755, uid=1000, gid=1000),
        member(f"{p}usr/bin/group", b"g", mode=0o2711),
        member(f"{p}tmp/", mode=0o1777),
        member(f"{p}empty"),
        member(f"{p}chunked", NOISE),
        member(f"{p}one chunk", NOISE[:CHUNK]),
        member(f"{p}one block", NOISE[:512]),
        member(f"{p}missing/parents/of/this", b"x"),
        symlink(f"{p}link", "usr/bin/tool"),
        symlink(f"{p}absolute", "/etc/passwd"),
        symlink(f"{p}dangling", "../../nowhere"),
        hardlink(f"{p}hard 1", f"{p}chunked"),
        hardlink(f"{p}hard 2", f"{p}hard 1"),
        hardlink(f"{p}hard 3", f"{p}hard 2"),
        member(f"{p}null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member(f"{p}disk", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660),
        member(f"{p}fifo", type=tarfile.FIFOTYPE, mode=0o600),
        member(f"{p}usr/", mode=0o755, uid=7),
        member(f"{p}twice", b"first"),
        member(f"{p}twice", b"second, and longer"),
        member(f"{p}.prefetch.landmark", b"\x0f"),
        member(f"{p}usr/.prefetch.landmark", b"not a landmark"),
        member(f"{p}ünïcödé ☃", b"snow"),
        *(member(p + name, name.encode()) for name in _LONG[: 2 if form == "USTAR" and p else 3]),
        member(f"{p}old", b"1970", mtime=0),
    ]
    if form != "USTAR":
        entries += [
            member(f"{p}{'n' * 255}", b"n"),
            symlink(f"{p}far", "t" * 300),
            member(f"{p}rich", b"r", uid=3_000_000_000, gid=2_500_000),
        ]
    if form == "PAX":
        note = {"user.note": b"\xff\x00\xfe", "user.empty": b"", "security.capability": CAPABILITY}
        entries += [
            member(f"{p}attributes", b"a", xattrs=note),
            member(f"{p}attributes of a directory/", xattrs={"user.mark": b"\x80"}),
        ]
    tar = tar_of(*entries, format=FORMATS[form])
    if sparse and form in _SPARSE:
        last = _sparse(prefix, form)
    else:
        last = tar_of(member(f"{p}sparse", HOLES, mode=0o640, mtime=1_500_000_000), format=FORMATS[form])
    return _without_end(tar) + _without_end(last) + _END


def _sparse(prefix: str, form: str) -> bytes:
    """A tar with one sparse file."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "sparse")
        with open(path, "wb") as file:
            for offset in (0, 1 << 20):
                os.pwrite(file.fileno(), NOISE[:4096], offset)
            file.truncate(len(HOLES))
        os.chmod(path, 0o640)
        os.utime(path, (1_500_000_000, 1_500_000_000))
        named = f"--transform=s,^,{prefix},"
        options = [f"--format={_SPARSE[form]}", "--sparse", "-P", "--owner=0", "--group=0", named]
        command = ["tar", "-cf", "-", "-C", directory, *options, "sparse"]
        return subprocess.run(command, check=True, capture_output=True).stdout


def _without_end(tar: bytes) -> bytes:
    """The entries of a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.getmembers()
        return tar[: archive.offset]
