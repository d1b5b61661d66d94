"""`scripts/bench`: builds what it measures, then goes on in namespaces of its own, their first process."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

import click
import msgspec

from fetcher.version import VERSION
from scripts.benchmark.host import describe_host
from scripts.benchmark.link import PROFILES
from scripts.benchmark.recipes import IMAGES
from scripts.benchmark.report import markdown
from scripts.benchmark.results import Results
from scripts.benchmark.runs import Bench, Pushed, bench
from scripts.namespaces import raise_on_termination
from scripts.workplace import Busy, cache_directory, work_directory
from tests.integration.image import built_image
from tests.integration.recipe import PYTHON, Recipe

_BUSY: Final = 0.5
"""Load per core."""
_PARTS: Final = ("starts", "reads", "missing", "memory", "growth")


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


@click.group()
@click.option("--inside", is_flag=True, hidden=True, help="Namespaces and images are there.")
@click.pass_context
def main(context: click.Context, *, inside: bool) -> None:
    """Compare layergate with containerd's own overlayfs snapshotter, on real parts."""
    context.obj = inside


_runs = click.option(
    "--runs", type=click.IntRange(1, 99), default=3, show_default=True, help="Runs a figure."
)
_output = click.option(
    "--output", type=click.Path(file_okay=False), help="Where results go.  [default: the cache]"
)


@main.command()
@click.option("--link", "link_name", type=click.Choice(sorted(PROFILES)), default="1g", show_default=True)
@_runs
@click.option("--reads/--no-reads", default=True, show_default=True, help="Measure reading afterwards.")
@_output
@click.pass_obj
def quick(inside: bool, link_name: str, runs: int, reads: bool, output: str | None) -> None:
    """One image (the one of scripts/image: a Debian with Python and numpy), in a few minutes."""
    results = _prepared(inside, [PYTHON])

    def measure(one: Bench, save: Callable[[], None]) -> None:
        image = one.images[PYTHON.name]
        results.starts.append(one.starts(image, runs))
        save()
        if reads:
            one.reads(image, results, runs)

    _run(results, [link_name], [PYTHON], measure, _directory(output, f"quick-{link_name}"))


@main.command()
@click.option("--image", "names", type=click.Choice(sorted(IMAGES)), multiple=True, help="[default: all]")
@click.option("--link", "links", type=click.Choice(sorted(PROFILES)), multiple=True, help="[default: all]")
@click.option("--part", "parts", type=click.Choice(_PARTS), multiple=True, help="[default: all]")
@_runs
@click.option("--peer", metavar="CMD", default="", help="Measure this stargz-snapshotter as well.")
@_output
@click.pass_obj
def full(
    inside: bool,
    names: Sequence[str],
    links: Sequence[str],
    parts: Sequence[str],
    runs: int,
    peer: str,
    output: str | None,
) -> None:
    """All images, links and parts: a few hours.

    Parts that no link can change (reads, memory, growth) are measured over the first one. Options that take
    several values are given once a value.
    """
    recipes = [IMAGES[name] for name in names or IMAGES]
    results = _prepared(inside, recipes)
    wanted = parts or _PARTS
    link_names = list(links or PROFILES)

    def measure(one: Bench, save: Callable[[], None]) -> None:
        for image in one.images.values():
            if "starts" in wanted:
                results.starts.append(one.starts(image, runs, shlex.split(peer)))
                save()
        if "missing" in wanted:
            one.missing(_all(one), results, runs)
            save()
        if one.link.profile.name != link_names[0]:
            return
        if "reads" in wanted:
            for image in one.images.values():
                one.reads(image, results, runs, shlex.split(peer))
                save()
        if "memory" in wanted:
            one.memory(results)
            save()
        if "growth" in wanted:
            one.growth(results)

    _run(results, link_names, recipes, measure, _directory(output, "full"))


@main.command()
@click.argument("results", type=click.Path(exists=True, dir_okay=False))
def report(results: str) -> None:
    """Write table and plots of a results.json again, beside it."""
    try:
        read = Results.read(results)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{results} is no result of this version: {error}") from error
    _write_report(read, os.path.dirname(os.path.abspath(results)))


def _all(one: Bench) -> list[Pushed]:
    return list(one.images.values())


def _prepared(inside: bool, recipes: Sequence[Recipe]) -> Results:
    """With the images built, and in the namespaces: else this process becomes one that is there."""
    if not inside:
        if os.geteuid():
            raise click.ClickException("must be root, to mount, to make a network and to run containerd")
        for recipe in recipes:
            built_image(recipe, _say)
        module = ["-m", "scripts.namespaces", "--network", "scripts.benchmark"]
        os.execv(sys.executable, [sys.executable, *module, "--inside", *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    raise_on_termination()
    host = describe_host()
    if host.load > _BUSY * host.cores:
        _say(f"others keep this machine busy (load {host.load}, {host.cores} cores): take no figure for true")
    return Results(VERSION, host)


def _run(
    results: Results,
    links: Sequence[str],
    recipes: Sequence[Recipe],
    measure: Callable[[Bench, Callable[[], None]], None],
    directory: str,
) -> None:
    """Measure over each link, and keep what there is after each step: a failure loses that step alone."""

    def save() -> None:
        results.write(f"{directory}/results.json")

    try:
        with work_directory("bench") as work:
            for name in links:
                with bench(work, PROFILES[name], recipes, _say) as one:
                    results.links[str(one.link.profile)] = one.measured
                    measure(one, save)
                save()
    except Busy as error:
        raise click.ClickException(str(error)) from error
    _write_report(results, directory)


def _write_report(results: Results, directory: str) -> None:
    from scripts.benchmark.plots import (
        write_plots,
    )  # a second of imports, which a run's beginning need not wait for

    text = markdown(results, write_plots(results, directory))
    with open(f"{directory}/report.md", "w", encoding="utf-8") as file:
        file.write(text)
    _say(f"raw runs, table and plots are in {directory}")
    sys.stdout.write(text)


def _directory(output: str | None, name: str) -> str:
    default = os.path.join(cache_directory("bench"), "results", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    directory = os.path.abspath(output or default)
    os.makedirs(directory, exist_ok=True)
    return directory


if __name__ == "__main__":
    main()
