"""The processes that compress, shared by all layers of an image. Thread-safe.

Processes and not threads: libdeflate's binding holds the interpreter's lock while it compresses, and so do
the thousands of small members of a layer whatever compresses them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_PRELOAD: Final = ["__main__", "fetcher.convert.compressing"]


class Compressors:
    """A pool of `jobs` processes, by default as many as this process may use processors; a context manager.

    They start with the block, in the background, and end with it, or if this process is killed.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_begin)
        # The processes start with the first thing to do: let that be while a source is still being unpacked.
        self._pool.submit(os.getpid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(
        self,
        function: Callable[_Arguments, _Result],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> Future[_Result]:
        """Have a function of `fetcher.convert.compressing` called in one of the processes.

        Raises BrokenProcessPool, as the future does, if one of them was killed.
        """
        return self._pool.submit(function, *args, **kwargs)


def _begin() -> None:
    """The first thing that each process does."""
    # Ctrl-C reaches every process of the terminal; the pool ends with the command.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The pool's queues have ends in every process of it, so none of them would notice that the command was
    # killed. (Nor would the fork server, whose own pipe they have too: a death signal from it never comes.)
    threading.Thread(target=_end_with_the_command, daemon=True).start()


def _end_with_the_command() -> None:
    command = multiprocessing.parent_process()
    assert command is not None
    wait([command.sentinel])
    os._exit(1)
