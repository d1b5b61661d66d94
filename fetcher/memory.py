"""Memory that is not needed any more, given back to the system."""

from __future__ import annotations

import ctypes
import gc

_libc = ctypes.CDLL(None)


def return_freed_memory() -> None:
    """Give back what the C library keeps of freed memory; for when much was freed that will not be needed."""
    trim = getattr(_libc, "malloc_trim", None)  # glibc's; others keep none
    if trim is not None:
        trim(0)


def return_unreachable_memory() -> None:
    """Free what only cycles hold (an error and its frames, an event loop), and give that back, too."""
    gc.collect()
    return_freed_memory()
