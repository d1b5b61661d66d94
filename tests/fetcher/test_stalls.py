"""A loop that does not come round is told of, with what it is at."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import pytest

from fetcher.logs import captured_logs
from fetcher.stalls import watch_for_stalls


def keep_everybody_waiting() -> None:
    time.sleep(1.0)


def watched(act: Callable[[], None], backend: str, *, seconds: float = 0.2) -> list[dict[str, object]]:
    async def run() -> None:
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await watch_for_stalls(seconds=seconds)

            tasks.start_soon(watch)
            await anyio.sleep(0.1)
            act()
            await anyio.sleep(0.3)
            tasks.cancel_scope.cancel()

    with captured_logs() as lines:
        anyio.run(run, backend=backend)
    return lines


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_stall_is_told_of_once_and_so_is_its_end(backend: str) -> None:
    stalled, over = watched(keep_everybody_waiting, backend)
    assert (stalled["event"], over["event"]) == ("stalled", "stall_over")
    assert str(stalled["where"]).startswith("keep_everybody_waiting (test_stalls.py:")


def test_a_loop_that_comes_round_is_not_told_of() -> None:
    assert watched(keep_everybody_waiting, "asyncio", seconds=10) == []
