"""Openings and removals of one blob exclude each other."""

from __future__ import annotations

import anyio
import pytest

from snapshotter.openings import Openings

pytestmark = pytest.mark.anyio


async def test_what_is_being_opened_is_not_removed() -> None:
    openings = Openings()
    async with openings.opening("a"), openings.opening("a"):
        with openings.removing(["a", "b"]) as free:
            assert free == {"b"}
    with openings.removing(["a", "b"]) as free:
        assert free == {"a", "b"}


async def test_it_is_known_what_is_being_opened() -> None:
    openings = Openings()
    async with openings.opening("a"):
        async with openings.opening("a"):
            assert openings.is_opening("a")
        assert openings.is_opening("a")
        assert not openings.is_opening("b")
    assert not openings.is_opening("a")


async def test_an_opening_waits_for_the_removal_of_its_blob_alone() -> None:
    openings = Openings()
    order: list[str] = []

    async def open_one(digest: str) -> None:
        async with openings.opening(digest):
            order.append(digest)

    async with anyio.create_task_group() as tasks:
        with openings.removing(["a"]):
            tasks.start_soon(open_one, "a")
            tasks.start_soon(open_one, "b")
            await anyio.wait_all_tasks_blocked()
            assert order == ["b"]
    assert order == ["b", "a"]


async def test_an_opening_that_fails_lets_go() -> None:
    openings = Openings()
    with pytest.raises(ValueError, match="broken"):
        async with openings.opening("a"):
            raise ValueError("broken")
    with openings.removing(["a"]) as free:
        assert free == {"a"}


async def test_a_removal_that_fails_lets_go() -> None:
    openings = Openings()
    with pytest.raises(ValueError, match="broken"), openings.removing(["a"]):
        raise ValueError("broken")
    async with openings.opening("a"):
        pass


async def test_removals_come_one_at_a_time() -> None:
    openings = Openings()
    with openings.removing(["a"]), pytest.raises(AssertionError), openings.removing(["b"]):
        pass


async def test_what_is_opened_during_a_removal_of_others_is_kept_by_the_next() -> None:
    openings = Openings()
    with openings.removing(["a"]):
        async with openings.opening("b"):
            pass
        entered = openings.opening("c")
        await entered.__aenter__()
    with openings.removing(["a", "b", "c"]) as free:
        assert free == {"a", "b"}
    await entered.__aexit__(None, None, None)
