"""What the C library keeps of freed memory."""

from __future__ import annotations

import ctypes

_libc = ctypes.CDLL(None)


def return_freed_memory() -> None:
    """Have it given back to the system; for when much was freed that will not be needed again."""
    trim = getattr(_libc, "malloc_trim", None)  # glibc's; others keep none
    if trim is not None:
        trim(0)
