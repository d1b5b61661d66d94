"""A round: an image is pulled, run, streamed and read, swapped, removed and cleaned away.

Somewhere in that a fault strikes and passes.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from tests.faults.afflictions import Affliction
from tests.faults.world import PATIENCE, Image, Leaks, Reader, Seen, World
from tests.integration.harness import CommandFailed

_MOMENT: Final = 3.5
"""Seconds into the round in which the fault strikes; the pull takes one, streaming three more."""
_LASTS: Final = 2.5
_AT_THE_END: Final = 0.3
"""Share of rounds in which it strikes after everything is here; swap, removal and cleaning take a second."""
OUTAGE: Final = "registry: a long outage"

T = TypeVar("T")


@dataclass
class Round:
    """One fault, at a moment that the seed decides."""

    world: World
    affliction: Affliction
    seed: str

    def run(self, resident: Reader) -> None:
        """Returns when everything is well again. Raises AssertionError, WrongBytes."""
        rng = random.Random(self.seed)
        seen = self.world.seen.setdefault(self.affliction.name, Seen())
        seen.rounds += 1
        reference, image = self.world.new_image(rng.randrange(1 << 60))
        at_the_end = rng.random() < _AT_THE_END
        moment, lasts = rng.uniform(0, 1.0 if at_the_end else _MOMENT), rng.uniform(0.1, _LASTS)
        enemy = _Enemy(self.world, self.affliction, rng, moment, lasts)
        try:
            with enemy, self._running(reference, seen, enemy, struck=not at_the_end) as root:
                seen.containers += 2  # the resident is one
                with Reader(root, image, seen, self.seed) as reader:
                    if not at_the_end:
                        enemy.join()
                    _until_readable(reader, self.affliction.name)
                    self.world.until_complete(image)
                    # From now on nothing is missing, and nothing may fail.
                    reader.here |= set(image.files)
                    if at_the_end:
                        enemy.begin()
                        self._swap(reference, image, seen, enemy)
                    _until_readable(reader, self.affliction.name)
                    reader.check()
                resident.check()
            self._persist(lambda: self.world.remove(reference), seen, enemy)
            self._persist(self.world.clean, seen, enemy)
            enemy.join()
            resident.check()
        finally:
            self.world.forget_image(image)

    def _swap(self, reference: str, image: Image, seen: Seen, enemy: _Enemy) -> None:
        """A container on the image's native directories: all of it is here, and nothing may fail."""

        def run() -> None:
            with self.world.container(reference) as container:
                reader = Reader(container.root, image, seen, self.seed, here=True)
                assert reader.read_all() == []

        self._persist(run, seen, enemy)

    def _persist(self, work: Callable[[], T], seen: Seen, enemy: _Enemy) -> T:
        """Try `work` again while the fault lasts, and a little more; what it gives."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return work()
            except (CommandFailed, LookupError) as error:
                if "Traceback" in str(error) or time.monotonic() > deadline:
                    raise
                if enemy.is_over and not self.world.layergate.running:
                    raise AssertionError(f"serve has ended: {self.world.layergate.log_end()}") from error
                seen.commands_failed += 1
                enemy.wait_a_moment()

    @contextlib.contextmanager
    def _running(self, reference: str, seen: Seen, enemy: _Enemy, *, struck: bool) -> Iterator[str]:
        """A container's root; if it is `struck`, pull and start are tried again while the fault lasts."""
        with contextlib.ExitStack() as stack:
            if struck:
                enemy.begin()

            def start() -> str:
                with contextlib.ExitStack() as trial:
                    self.world.pull(reference)
                    root = trial.enter_context(self.world.container(reference)).root
                    stack.enter_context(trial.pop_all())
                return root

            yield self._persist(start, seen, enemy)


class _Enemy:
    """Strikes once after `begin`, in a thread of its own, and mends what it did before the block ends."""

    def __init__(
        self, world: World, affliction: Affliction, rng: random.Random, moment: float, lasts: float
    ) -> None:
        self._world = world
        self._affliction = affliction
        self._rng = rng
        self._moment = moment
        self._lasts = lasts
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """The moment at which it strikes is counted from here."""
        self._thread.start()

    def join(self) -> None:
        """Wait until it is over. Raises what went wrong in it."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    @property
    def is_over(self) -> bool:
        """Whether it has struck and passed."""
        return not self._thread.is_alive()

    def wait_a_moment(self) -> None:
        """Wait until the fault is over, but not for long."""
        if self._thread.is_alive():
            self._thread.join(0.5)
        time.sleep(0.1)

    def _run(self) -> None:
        try:
            time.sleep(self._moment)
            self._affliction.strike(self._world, self._rng)
            try:
                time.sleep(self._lasts)
            finally:
                self._affliction.heal(self._world, self._rng)
        except BaseException as error:
            self._error = error


def outlast(world: World, seed: str, seconds: float) -> None:
    """The registry is down for so long, and when serve starts; a container of a complete image is started.

    Another container stands on layers of which most is missing, and is read all the time.
    """
    rng = random.Random(seed)
    seen = world.seen.setdefault(OUTAGE, Seen())
    seen.rounds += 1
    images = [world.new_image(rng.randrange(1 << 60)) for _ in range(2)]
    (first, complete), (second, streaming) = images
    world.pull(first)
    world.until_complete(complete)
    world.pull(second)
    with world.container(second) as container, Reader(container.root, streaming, seen, seed) as reader:
        seen.containers += 1
        world.registry.down()
        try:
            since = time.monotonic()
            world.layergate.stop()
            world.layergate.start()
            world.node.until_met()
            with (
                world.container(first) as whole,
                Reader(whole.root, complete, seen, seed, here=True) as other,
            ):
                seen.containers += 1
                while time.monotonic() < since + seconds:
                    assert other.read_all() == []
                    time.sleep(1)
                other.check()
            assert world.incomplete(streaming), "nothing was missing"
        finally:
            world.registry.up()
        _until_readable(reader, OUTAGE)
        world.until_complete(streaming)
        reader.check()
    for reference, image in images:
        world.remove(reference)
        world.forget_image(image)


def _until_readable(reader: Reader, after: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := reader.read_all():
        assert time.monotonic() < deadline, f"cannot be read after {after}: {left}"
        time.sleep(0.2)


@contextlib.contextmanager
def resident(world: World, seed: int) -> Iterator[tuple[Image, str]]:
    """A container whose layers are complete: faults are none of its business. Gives image and root."""
    reference, image = world.new_image(seed)
    world.pull(reference)
    with world.container(reference) as container:
        world.until_complete(image)
        yield image, container.root
    world.remove(reference)


def used_once(world: World) -> Leaks:
    """What there is of ours when something has happened, and all of it was removed."""
    with resident(world, 0):
        pass
    world.clear()
    return world.leaks()
