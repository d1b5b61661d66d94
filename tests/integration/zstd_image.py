"""The real image as zstd:chunked, made by Debian's tools and cached beside its other forms.

| form | made by |
|---|---|
| stargz | `ctr-remote images convert --zstdchunked` |
| containers | `skopeo copy --dest-compress-format zstd:chunked` |
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from typing import Final

from tests.integration.harness import Containerd, call
from tests.integration.image import RealImage

FORMS: Final = ("stargz", "containers")

_PLAIN = "layergate.test/python:plain"
_CONVERTED = "layergate.test/python:zstd"


def zstd_image(image: RealImage) -> dict[str, str]:
    """The directory of each form's OCI layout; made first where it is not there, which takes a minute."""
    entry = f"{os.path.dirname(image.plain)}-zstd"
    with open(f"{entry}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(entry):
            with tempfile.TemporaryDirectory(prefix="building-", dir=os.path.dirname(entry)) as directory:
                finished = os.path.join(directory, "finished")
                os.mkdir(finished)
                _convert(image.plain, os.path.join(directory, "archive.tar"), f"{finished}/stargz")
                copy = ["skopeo", "copy", "--quiet", "--dest-compress-format", "zstd:chunked"]
                call([*copy, f"oci:{image.plain}", f"oci:{finished}/containers"])
                os.rename(finished, entry)
    return {form: os.path.join(entry, form) for form in FORMS}


def _convert(layout: str, archive: str, target: str) -> None:
    with tempfile.TemporaryDirectory(prefix="layergate-") as short, Containerd(short) as containerd:
        call(["tar", "--create", f"--file={archive}", f"--directory={layout}", "."])
        containerd.ctr("images", "import", archive)
        convert = ["images", "convert", "--zstdchunked", "--oci", _PLAIN, _CONVERTED]
        containerd.ctr(*convert, program="ctr-remote", timeout=600)
        containerd.ctr("images", "export", "--skip-manifest-json", archive, _CONVERTED)
    os.mkdir(target)
    call(["tar", "-x", "-f", archive, "-C", target])
