"""Each fault: how it strikes, and how it is mended."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.faults.world import World
from tests.integration.processes import send
from tests.registry_faults import (
    Drop,
    Fault,
    IgnoreRange,
    ShiftRange,
    ShortRange,
    Silence,
    Status,
    Throttle,
    Truncate,
    WrongBytes,
)

Act = Callable[[World, random.Random], None]


@dataclass(frozen=True, slots=True)
class Affliction:
    """One kind of fault. `strike` does it, `heal` undoes what does not pass by itself."""

    name: str
    strike: Act
    heal: Act


def _nothing(world: World, rng: random.Random) -> None:
    """It passes by itself."""


# Processes


def _kill_serve(world: World, rng: random.Random) -> None:
    world.layergate.kill9()


def _start_serve(world: World, rng: random.Random) -> None:
    world.layergate.start()


def _kill_mounter(world: World, rng: random.Random) -> None:
    with contextlib.suppress(OSError):  # none runs
        world.layergate.kill9_mounter()


def _end_mounter(world: World, rng: random.Random) -> None:
    """It gives up its place, and stays for those that need it."""
    with contextlib.suppress(OSError):
        send(world.layergate.mounter_pid, signal.SIGTERM)


def _mounter(world: World) -> int:
    with contextlib.suppress(OSError):
        return world.layergate.mounter_pid
    return 0


def _kill_worker(world: World, rng: random.Random) -> None:
    """Workers, pulls, and what they are forked from."""
    others = sorted(set(world.layergate.descendants) - {_mounter(world)})
    if others:
        send(rng.choice(others), signal.SIGKILL)


def _kill_all(world: World, rng: random.Random) -> None:
    world.layergate.kill9_all()


def _restart(world: World, rng: random.Random) -> None:
    world.layergate.stop()


# The registry


def _wrong(fault: Callable[[random.Random], Fault], *, times: int | None = None) -> Act:
    def strike(world: World, rng: random.Random) -> None:
        for kind in ("blob", "storage"):
            world.registry.fail(kind, fault(rng), times=times)

    return strike


def _heal_registry(world: World, rng: random.Random) -> None:
    world.registry.heal()


def _expire(world: World, rng: random.Random) -> None:
    world.registry.expire_tokens()
    world.registry.expire_signatures()


def _down(world: World, rng: random.Random) -> None:
    world.registry.down()


def _up(world: World, rng: random.Random) -> None:
    world.registry.up()


# The disk


def _ballast(world: World) -> str:
    return os.path.join(world.disk, "ballast")


def _fill(world: World, rng: random.Random) -> None:
    status = os.statvfs(world.disk)
    with open(_ballast(world), "wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize)


def _empty(world: World, rng: random.Random) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_ballast(world))


def _use_up_inodes(world: World, rng: random.Random) -> None:
    os.mkdir(_ballast(world))
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            os.close(os.open(f"{_ballast(world)}/{number}", os.O_CREAT | os.O_WRONLY))


def _give_inodes_back(world: World, rng: random.Random) -> None:
    for name in os.listdir(_ballast(world)):
        os.unlink(f"{_ballast(world)}/{name}")
    os.rmdir(_ballast(world))


def _befall(name: str) -> Act:
    """Have misfortune.c do what is called so."""

    def strike(world: World, rng: random.Random) -> None:
        world.befall(name)

    return strike


def _spare(name: str) -> Act:
    def heal(world: World, rng: random.Random) -> None:
        world.spare(name)

    return heal


# The rest of the node


def _jump(world: World, rng: random.Random) -> None:
    """By an hour to a month, to either side; back again when it is over."""
    world.befall("clock", str(rng.choice((-1, 1)) * rng.randrange(3600, 30 * 86400)))


def _limit_memory(world: World, rng: random.Random) -> None:
    world.memory.squeeze()


def _unlimit_memory(world: World, rng: random.Random) -> None:
    """What was killed comes back as a service manager would have it."""
    world.memory.release()
    if not world.layergate.running:
        world.layergate.start()


def _upgrade(world: World, rng: random.Random) -> None:
    world.install_another_version()
    world.layergate.stop()


def _somewhere(kind: Callable[[int], Fault]) -> Callable[[random.Random], Fault]:
    return lambda rng: kind(rng.randrange(1, 100_000))


AFFLICTIONS: Final = tuple(
    Affliction(*one)
    for one in (
        ("kill -9 of serve", _kill_serve, _start_serve),
        ("kill -9 of the mounter", _kill_mounter, _nothing),
        ("SIGTERM of the mounter", _end_mounter, _nothing),
        ("kill -9 of a worker", _kill_worker, _nothing),
        ("kill -9 of all at once", _kill_all, _start_serve),
        ("SIGTERM and restart", _restart, _start_serve),
        ("upgrade to another version", _upgrade, _start_serve),
        ("registry: 500", _wrong(lambda rng: Status(500)), _heal_registry),
        ("registry: 503", _wrong(lambda rng: Status(503)), _heal_registry),
        (
            "registry: 429 with Retry-After",
            _wrong(lambda rng: Status(429, (("Retry-After", "1"),)), times=4),
            _heal_registry,
        ),
        ("registry: reset inside a body", _wrong(_somewhere(Drop)), _heal_registry),
        ("registry: truncated body", _wrong(_somewhere(Truncate)), _heal_registry),
        ("registry: silence", _wrong(lambda rng: Silence()), _heal_registry),
        ("registry: a trickle", _wrong(lambda rng: Throttle(2000)), _heal_registry),
        ("registry: another range", _wrong(lambda rng: ShiftRange()), _heal_registry),
        ("registry: short ranges", _wrong(_somewhere(ShortRange)), _heal_registry),
        ("registry: Range ignored", _wrong(lambda rng: IgnoreRange()), _heal_registry),
        ("registry: wrong bytes", _wrong(lambda rng: WrongBytes()), _heal_registry),
        ("registry: tokens and signed URLs expire", _expire, _nothing),
        ("registry: down", _down, _up),
        ("disk full", _fill, _empty),
        ("no inodes left", _use_up_inodes, _give_inodes_back),
        ("I/O errors", _befall("eio"), _spare("eio")),
        ("read-only file system", _befall("erofs"), _spare("erofs")),
        ("slow disk", _befall("slow"), _spare("slow")),
        ("memory limit", _limit_memory, _unlimit_memory),
        ("the clock jumps", _jump, _spare("clock")),
    )
)
