"""Reads of /dev/fuse that stop nobody.

pyfuse3 reads a request when it has been told that there is one, by a read that blocks, in the event loop and
with the interpreter's lock. The request may be gone by then: whoever made it was killed, or it was the
INTERRUPT of one that was answered in the meantime. Then that read waits for the next request of anybody, and
with it everything that this process does.
"""

from __future__ import annotations

import select
import signal
from types import SimpleNamespace
from typing import Final

import pyfuse3
import trio

_LONGEST_SECONDS: Final = 1.0
"""A read that blocks all the same, as a request went between the look and the read, ends after so long."""


def keep_reads_short() -> None:
    """Have pyfuse3 look again just before it reads. In the main thread, before `pyfuse3.main`.

    From then on the process has a timer (ITIMER_REAL, SIGALRM), which breaks off what blocks.
    """
    lowlevel = SimpleNamespace(**(vars(trio.lowlevel) | {"wait_readable": wait_readable}))
    # It takes another event loop's functions in the same way: pyfuse3.asyncio.
    pyfuse3.trio = SimpleNamespace(**(vars(trio) | {"lowlevel": lowlevel}))  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_SECONDS, _LONGEST_SECONDS)


async def wait_readable(fd: int) -> None:
    """`trio.lowlevel.wait_readable`, and it is readable still: no other task had its turn since."""
    look = select.poll()
    look.register(fd, select.POLLIN)
    while True:
        await trio.lowlevel.wait_readable(fd)
        if look.poll(0):
            return
