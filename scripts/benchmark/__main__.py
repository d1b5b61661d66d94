"""`scripts/bench`: run in namespaces of its own by that script, as the first process there."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from typing import Final

import click

from fetcher.version import VERSION
from scripts.benchmark import engines
from scripts.benchmark.host import describe_host
from scripts.benchmark.link import PROFILES, Link
from scripts.benchmark.pulls import Pull, cold_start
from scripts.benchmark.reads import Reading, compare_reads
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.benchmark.report import Results, Subject, markdown
from scripts.namespaces import raise_on_termination
from scripts.workplace import Busy, cache_directory, work_directory
from tests.integration.harness import fresh_file_system
from tests.integration.image import real_image

_LAZY_FORMS: Final = ("optimized", "estargz")
_BUSY: Final = 0.5
"""Load per core."""
_FORMS: Final = ("plain", *_LAZY_FORMS)


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


@click.group()
def main() -> None:
    """Compare layergate with containerd's own overlayfs snapshotter, on real parts."""


@main.command()
@click.option("--link", "link_name", type=click.Choice(sorted(PROFILES)), default="1g", show_default=True)
@click.option("--runs", type=click.IntRange(1, 99), default=3, show_default=True, help="Runs a figure.")
@click.option("--reads/--no-reads", default=True, show_default=True, help="Measure reading afterwards.")
@click.option("--output", type=click.Path(file_okay=False), help="Where results go.  [default: the cache]")
def quick(link_name: str, runs: int, reads: bool, output: str | None) -> None:
    """One image (a Debian with Python and numpy): the table of README.md, in a few minutes.

    Prints Markdown on standard output; the raw runs go into a JSON file.
    """
    raise_on_termination()
    try:
        with work_directory("bench") as work:
            results = _measure(work, link_name, runs, reads=reads)
    except Busy as error:
        raise click.ClickException(str(error)) from error
    directory = output or os.path.join(cache_directory("bench"), "results")
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"quick-{link_name}-{time.strftime('%Y%m%d-%H%M%S')}")
    with open(f"{path}.json", "w", encoding="utf-8") as file:
        json.dump(asdict(results), file, indent=2)
    with open(f"{path}.md", "w", encoding="utf-8") as file:
        file.write(markdown(results))
    _say(f"raw runs in {path}.json")
    sys.stdout.write(markdown(results))


def _measure(work: str, link_name: str, runs: int, *, reads: bool) -> Results:
    image = real_image(_say)
    host = describe_host()
    if host.load > _BUSY * host.cores:
        _say(f"others keep this machine busy (load {host.load}, {host.cores} cores): take no figure for true")
    with Link(PROFILES[link_name], work) as link, FarRegistry(link, f"{work}/registry") as registry:
        pushed = {form: registry.push(getattr(image, form), "python", form) for form in _FORMS}
        registry.warm_up()
        measured = link.measure(pushed["plain"].largest_url)
        _say(f"link: {measured.mbit_per_second} Mbit/s, {measured.round_trip_ms} ms")
        bench = _Bench(work, link, registry)
        overlayfs = []
        lazy: dict[str, list[Pull]] = {form: [] for form in _LAZY_FORMS}
        for number in range(1, runs + 1):
            overlayfs.append(bench.overlayfs(number, pushed["plain"]))
            for form in _LAZY_FORMS:
                lazy[form].append(bench.lazy(number, pushed[form]))
        return Results(
            layergate=VERSION,
            host=host,
            profile=link.profile,
            link=measured,
            subjects={form: Subject(form, len(one.layers), one.size) for form, one in pushed.items()},
            overlayfs=overlayfs,
            lazy=lazy,
            reads=bench.reads(pushed["optimized"], pushed["plain"], 2 * runs + 1) if reads else [],
        )


class _Bench:
    """Runs on a link and a registry, each on a fresh file system."""

    def __init__(self, work: str, link: Link, registry: FarRegistry) -> None:
        self._work = work
        self._link = link
        self._registry = registry

    def overlayfs(self, number: int, image: PushedImage) -> Pull:
        with fresh_file_system(f"{self._work}/fs") as directory, engines.overlayfs(directory) as engine:
            return self._pull(number, engine, image)

    def lazy(self, number: int, image: PushedImage) -> Pull:
        with fresh_file_system(f"{self._work}/fs") as directory, engines.lazy(directory) as engine:
            return self._pull(number, engine, image)

    def reads(self, image: PushedImage, plain: PushedImage, passes: int) -> list[Reading]:
        with fresh_file_system(f"{self._work}/fs") as directory, engines.lazy(directory) as engine:
            return compare_reads(engine, image, plain, self._work, passes=passes)

    def _pull(self, number: int, engine: engines.Engine, image: PushedImage) -> Pull:
        pull = cold_start(engine, image, self._link, self._registry)
        _say(
            f"run {number}, {engine.snapshotter}, {image.reference.rpartition(':')[2]}: "
            f"pulled {pull.pulled:.2f} s, first output {pull.first_output:.2f} s, "
            f"complete {pull.complete:.2f} s, "
            f"CPU {pull.cpu_to_complete:.2f} s"
        )
        return pull


if __name__ == "__main__":
    main()
