"""SIGINT, SIGTERM and SIGHUP for commands that undo what they have begun."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from types import FrameType

_INTERRUPTS: Final = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "terminated, as its terminal was closed",
}
_UNDO_SECONDS: Final = 10.0

_Result = TypeVar("_Result")


class Interrupted(BaseException):
    """A signal has ended what was to be done, and it is undone. `number` is the signal's."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(_INTERRUPTS[number])
        self.number = number


def run_to_undo(work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run `work` in an event loop; SIGINT, SIGTERM and SIGHUP cancel it, but for those that are ignored.

    Only the first one does, as a second one would break off what is undone then; but for one that comes 10 s
    later or more, from somebody who has waited. Raises Interrupted then; the process, which is to end, is not
    interrupted from then on.
    """
    import asyncio

    first: signal.Signals | None = None
    patience = 0.0
    running: tuple[asyncio.AbstractEventLoop, asyncio.Task[_Result]] | None = None

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal first, patience
        now = time.monotonic()
        if first is None or now >= patience:
            first = first or signal.Signals(number)
            patience = now + _UNDO_SECONDS
            if running is not None and not running[0].is_closed():
                running[0].call_soon_threadsafe(running[1].cancel)

    async def run() -> _Result:
        nonlocal running
        task = asyncio.current_task()
        assert task is not None
        running = asyncio.get_running_loop(), task
        if first is not None:
            raise asyncio.CancelledError
        return await work()

    before = {number: signal.signal(number, hear) for number in heeded_interrupts()}
    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        if first is None:
            raise
        raise Interrupted(first) from None
    finally:
        if first is not None:
            ignore_interrupts()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)


def heeded_interrupts() -> list[signal.Signals]:
    """Those that this process was not started to ignore, as nohup and a shell's background have it."""
    return [number for number in _INTERRUPTS if signal.getsignal(number) is not signal.SIG_IGN]


def ignore_interrupts() -> None:
    """The process is about to end, and does not want to be interrupted in that."""
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
