"""Signals for commands that undo: the first one cancels, and what follows does not break off the undoing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from snapshotter import interrupts
from snapshotter.interrupts import Interrupted, run_to_undo

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Work:
    """Is interrupted when it has begun, and then `again` at each of three steps of undoing."""

    def __init__(self, number: signal.Signals, *, again: signal.Signals | None) -> None:
        self.undone = 0
        self._number = number
        self._again = again

    async def run(self) -> None:
        try:
            os.kill(os.getpid(), self._number)
            await asyncio.sleep(60)
        finally:
            for _ in range(3):
                if self._again is not None:
                    os.kill(os.getpid(), self._again)
                await asyncio.sleep(0.01)
                self.undone += 1


@pytest.mark.parametrize("again", [None, *NUMBERS])
@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_undone_is_not_interrupted(number: signal.Signals, again: signal.Signals | None) -> None:
    work = Work(number, again=again)
    with pytest.raises(Interrupted) as raised:
        run_to_undo(work.run)
    assert raised.value.number is number
    assert work.undone == 3
    for one in NUMBERS:
        os.kill(os.getpid(), one)  # the process is to end, and does that its own way


def test_who_has_waited_for_long_can_interrupt_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "_UNDO_SECONDS", 0)
    work = Work(signal.SIGINT, again=signal.SIGINT)
    with pytest.raises(Interrupted):
        run_to_undo(work.run)
    assert work.undone == 0


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """nohup does so with SIGHUP, and a script's shell with SIGINT for what runs in its background."""
    signal.signal(number, signal.SIG_IGN)

    async def work() -> int:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        return 5

    assert run_to_undo(work) == 5
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_process_that_was_not_interrupted_is_as_before() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]

    async def work() -> int:
        assert [signal.getsignal(number) for number in NUMBERS] != before
        return 5

    assert run_to_undo(work) == 5
    assert [signal.getsignal(number) for number in NUMBERS] == before
