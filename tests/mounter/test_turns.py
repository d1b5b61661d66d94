"""Who is answered, and when, of those that walk into a layer at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest
from anyio.abc import TaskGroup

from mounter import turns as module
from mounter.turns import Turns

WALKS = 200


class Walks:
    """Each takes its turn and is told of in `answered`."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.answered: list[int] = []

    async def ask(self, thread: int) -> None:
        await self.turns.take(thread)
        self.turns.give(thread + 1000)
        self.answered.append(thread)

    async def queue(self, tasks: TaskGroup, *threads: int) -> None:
        """Each asks behind those before it, and waits as long as it has to."""
        for thread in threads:
            tasks.start_soon(self.ask, thread)
            await anyio.wait_all_tasks_blocked()

    def enter(self, thread: int) -> None:
        self.turns.entered(thread + 1000)


def run(scenario: Callable[[Walks, TaskGroup], Awaitable[None]]) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            await scenario(Walks(), tasks)

    anyio.run(main, backend="trio")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns end by themselves or never."""
    monkeypatch.setattr(module, "_QUIET_SECONDS", 1000)
    monkeypatch.setattr(module, "_TURN_SECONDS", 1000)


def test_one_walk_alone_never_waits(patient: None) -> None:
    async def scenario(walks: Walks, _tasks: TaskGroup) -> None:
        for thread in (1, 1, 2, 3):
            await walks.ask(thread)
            walks.enter(thread)
        await walks.ask(1)
        await walks.ask(1)

    run(scenario)


def test_a_walk_is_answered_until_it_has_entered_and_then_the_next_one_is(patient: None) -> None:
    async def scenario(walks: Walks, tasks: TaskGroup) -> None:
        await walks.queue(tasks, 1, 2, 3, 1)
        assert walks.answered == [1, 1]
        walks.enter(7)
        assert walks.answered == [1, 1], "it was another directory"
        walks.enter(1)
        await anyio.wait_all_tasks_blocked()
        assert walks.answered == [1, 1, 2]
        walks.enter(1)
        await anyio.wait_all_tasks_blocked()
        assert walks.answered == [1, 1, 2], "it goes on, and its turn was over"
        walks.enter(2)
        await anyio.wait_all_tasks_blocked()
        assert walks.answered == [1, 1, 2, 3]
        await walks.queue(tasks, 4)
        walks.enter(3)

    run(scenario)


def test_a_walk_that_cannot_be_seen_does_not_wait_for_others_like_it(patient: None) -> None:
    async def scenario(walks: Walks, tasks: TaskGroup) -> None:
        await walks.queue(tasks, 0, 0, 0)
        assert walks.answered == [0, 0, 0]

    run(scenario)


@pytest.mark.parametrize("first", [True, False])
def test_who_leaves_the_queue_holds_nobody_up(patient: None, first: bool) -> None:
    async def scenario(walks: Walks, tasks: TaskGroup) -> None:
        await walks.ask(1)
        async with anyio.create_task_group() as leaving:
            await walks.queue(*((leaving, 2) if first else (tasks, 2)))
            await walks.queue(*((tasks, 3) if first else (leaving, 3)))
            leaving.cancel_scope.cancel()
        await walks.queue(tasks, 4)
        for thread in (1, *((3,) if first else (2,)), 4):
            walks.enter(thread)
            await anyio.wait_all_tasks_blocked()
        assert walks.answered == [1, 3 if first else 2, 4]

    run(scenario)


def test_a_turn_of_long_ago_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0)

    async def scenario(walks: Walks, _tasks: TaskGroup) -> None:
        monkeypatch.setattr(walks.turns, "_wait", None)
        for thread in (1, 2, 3):
            await walks.ask(thread)

    run(scenario)


def test_a_turn_that_does_not_end_is_given_up() -> None:
    async def scenario(walks: Walks, tasks: TaskGroup) -> None:
        await walks.ask(1)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as waiting:
                await walks.queue(waiting, *range(2, WALKS))
        assert sorted(walks.answered) == list(range(1, WALKS))

    run(scenario)


def test_a_turn_is_not_given_up_while_others_still_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUIET_SECONDS", 5)

    async def scenario(walks: Walks, tasks: TaskGroup) -> None:
        await walks.ask(1)
        begun = anyio.current_time()
        await walks.queue(tasks, 2)
        while walks.answered == [1]:
            await walks.queue(tasks, 3)
            await anyio.sleep(0.1)
        assert anyio.current_time() - begun >= module._TURN_SECONDS
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    run(scenario)
