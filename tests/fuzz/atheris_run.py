"""One target under atheris, in a process of its own: libFuzzer ends it."""

from __future__ import annotations

import hashlib
import os
import sys


def run(name: str, corpus: str, seconds: int, seed: int) -> None:
    """Fuzz the target `name` from its seeds and what is in `corpus`. Does not return."""
    try:
        import atheris
    except ImportError:
        sys.exit(
            "fuzz: atheris is not installed: pip install atheris, which has wheels for some Pythons only"
        )
    with atheris.instrument_imports(
        include=["fetcher", "mounter", "snapshotter"], enable_loader_override=False
    ):
        from tests.fuzz.targets import TARGETS
    for one in TARGETS[name].seeds:
        with open(os.path.join(corpus, hashlib.sha256(one).hexdigest()), "wb") as file:
            file.write(one)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=16384"]
    atheris.Setup(
        [sys.argv[0], *limits, f"-seed={seed}", "-verbosity=0", "-print_final_stats=1", corpus],
        TARGETS[name].read,
    )
    atheris.Fuzz()
