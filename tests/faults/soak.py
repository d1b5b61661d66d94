"""Faults at random moments for as long as asked, and a table of what containers saw: scripts/soak."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict
from typing import Final

import click

from tests.faults.afflictions import AFFLICTIONS
from tests.faults.rounds import OUTAGE, Round, outlast, resident, used_once
from tests.faults.world import Reader, Seen, World, world
from tests.integration.harness import call
from tests.integration.processes import python

_CLEARING: Final = 25
"""Rounds after which everything is removed, and nothing may be left."""
_POWER_LOSS: Final = "power loss"
_NETWORK: Final = "the registry's network is gone"
_HEADINGS: Final = {
    "rounds": "rounds",
    "containers": "containers running",
    "reads": "reads",
    "errors_here": "errors, files here",
    "errors_missing": "errors, files missing",
    "commands_failed": "commands tried again",
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(min=0), default=30.0, show_default=True, help="How long.")
@click.option("--rounds", type=click.IntRange(min=1), help="How many rounds, however long they take.")
@click.option("--seed", type=int, help="Repeat a run, as far as its decisions go.")
@click.option(
    "--outage",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Begin with the registry down for so many minutes.",
)
@click.option("--fault", default="", metavar="TEXT", help="Only faults whose names contain TEXT: kill, say.")
@click.option("--output", type=click.Path(file_okay=False), help="Where to write soak.md and soak.json.")
def main(
    minutes: float, rounds: int | None, seed: int | None, outage: float, fault: str, output: str | None
) -> None:
    """Have a node survive faults, in rounds; the first that it does not survive ends it."""
    if not any(fault in one.name for one in AFFLICTIONS):
        raise click.BadParameter(
            f"no fault is called so; there are {', '.join(one.name for one in AFFLICTIONS)}",
            param_hint="--fault",
        )
    seed = random.SystemRandom().randrange(1, 1 << 32) if seed is None else seed
    start = time.monotonic()
    click.echo(f"seed {seed}")
    with world() as node:
        try:
            if outage:
                click.echo(f"{time.monotonic() - start:6.0f} s  {OUTAGE}")
                outlast(node, f"{seed} outage", outage * 60)
            count = _soak(node, seed, start, minutes * 60, rounds, fault)
        finally:
            text = table(node.seen, seed, time.monotonic() - start)
            click.echo(text)
            if output is not None:
                _write(output, text, node.seen, seed)
    click.echo(f"{count} rounds survived, nothing left behind, no wrong byte")


def _soak(node: World, seed: int, start: float, seconds: float, rounds: int | None, fault: str) -> int:
    afflictions = [one for one in AFFLICTIONS if fault in one.name]
    rng = random.Random(seed)
    before = used_once(node)
    count = 0

    def goes_on() -> bool:
        return time.monotonic() < start + seconds if rounds is None else count < rounds

    while goes_on():
        with resident(node, rng.randrange(1 << 60)) as (image, root):
            seen = Seen()
            with Reader(root, image, seen, f"{seed} resident {count}", here=True) as reader:
                for _ in range(_CLEARING):
                    if not goes_on():
                        break
                    affliction = rng.choice(afflictions)
                    click.echo(f"{time.monotonic() - start:6.0f} s  {count}  {affliction.name}")
                    Round(node, affliction, f"{seed} {count}").run(reader)
                    count += 1
                reader.check()
        node.clear()
        node.until_nothing_leaks(before)
        for name, happen in _ELSEWHERE:
            if fault not in name:
                continue
            click.echo(f"{time.monotonic() - start:6.0f} s  {count}  {name}")
            add(node.seen.setdefault(name, Seen()), happen(1, rng.randrange(1 << 60)))
            count += 1
    return count


def add(total: Seen, more: Seen) -> None:
    """Count what was seen later, too."""
    for key, value in asdict(more).items():
        setattr(total, key, getattr(total, key) + value)


def lose_power(rounds: int, seed: int) -> Seen:
    """What `tests.faults.power_loss` has seen. Raises CommandFailed."""
    return _seen_by("tests.faults.power_loss", rounds, seed)


def lose_network(rounds: int, seed: int) -> Seen:
    """What `tests.faults.network_loss` has seen. Raises CommandFailed."""
    return _seen_by("scripts.namespaces", rounds, seed, "--network", "tests.faults.network_loss")


def _seen_by(module: str, rounds: int, seed: int, *arguments: str) -> Seen:
    command = python(module, *arguments, "--rounds", str(rounds), "--seed", str(seed))
    return Seen(**json.loads(call(command, timeout=rounds * 300)))


_ELSEWHERE: Final = ((_POWER_LOSS, lose_power), (_NETWORK, lose_network))
"""Faults that have a machine, or a network, of their own."""


def table(seen: dict[str, Seen], seed: int, seconds: float) -> str:
    """What was seen, in Markdown."""
    names = (*(one.name for one in AFFLICTIONS), OUTAGE, _NETWORK, _POWER_LOSS)
    rows = [(name, seen[name]) for name in names if name in seen]
    total = Seen()
    for _, one in rows:
        add(total, one)
    lines = [
        f"Seed {seed}, {seconds / 60:.0f} minutes, {total.rounds} rounds.",
        "",
        f"| fault | {' | '.join(_HEADINGS.values())} |",
        f"|---|{'---|' * len(_HEADINGS)}",
    ]
    for name, one in [*rows, ("all", total)]:
        lines.append(f"| {name} | {' | '.join(str(getattr(one, key)) for key in _HEADINGS)} |")
    return "\n".join(lines)


def _write(directory: str, text: str, seen: dict[str, Seen], seed: int) -> None:
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "soak.md"), "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    with open(os.path.join(directory, "soak.json"), "w", encoding="utf-8") as file:
        json.dump({"seed": seed, "seen": {name: asdict(one) for name, one in seen.items()}}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
