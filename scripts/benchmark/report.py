"""Markdown of what was measured, with its conditions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from scripts.benchmark.goals import Row, tables
from scripts.benchmark.pulls import Pull
from scripts.benchmark.results import Results, Starts

_MARKS: Final = {True: "yes", False: "**no**", None: ""}
_MB: Final = 1e6


def markdown(results: Results, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Conditions, a table a subject, and the plots; `pictures` are titles and file names."""
    lines = [conditions(results), ""]
    for title, rows in tables(results).items():
        lines += [f"### {title}", "", *table(rows), ""]
    lines += [f"![{title}]({name})" for title, name in pictures]
    return "\n".join(lines).rstrip("\n") + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of a Markdown table."""
    head = ["| | goal | measured | met |", "|---|---|---|---|"]
    return head + [f"| {row.what} | {row.goal} | {row.measured} | {_MARKS[row.met]} |" for row in rows]


def conditions(results: Results) -> str:
    """What figures depend on, as a paragraph."""
    host = results.host
    busy = [run.busy_before for run in _pulls(results)]
    sentences = [
        f"layergate {results.layergate}. {host.cores} cores ({host.processor}), {host.memory_mib >> 10} GiB, "
        f"Linux {host.kernel}, containerd {host.containerd}{' with unpigz' if host.unpigz else ''}, "
        f"runc {host.runc}, Python {host.python}; load before {host.load}"
        + (f", at most {max(busy):.0%} of the cores busy before a run." if busy else "."),
        "Each run on a fresh ext4 with the page cache dropped.",
    ]
    sentences += [
        f"Link {name} round trip, as measured {link.mbit_per_second:.0f} Mbit/s, {link.round_trip_ms:.1f} ms."
        for name, link in results.links.items()
    ]
    sentences += [_sizes(starts) for starts in _one_a_name(results.starts)]
    return " ".join(sentences)


def _pulls(results: Results) -> Iterator[Pull]:
    for starts in results.starts:
        for runs in starts.runs.values():
            yield from runs
    for growth in results.growth:
        yield from growth.lazy
        yield from growth.overlayfs


def _one_a_name(starts: Sequence[Starts]) -> list[Starts]:
    return list({one.image: one for one in starts}.values())


def _sizes(starts: Starts) -> str:
    sizes = ", ".join(f"{one.form} {one.size / _MB:.1f} MB" for one in starts.subjects.values())
    layers = next(iter(starts.subjects.values())).layers
    runs = max((len(runs) for runs in starts.runs.values()), default=0)
    return f"Image {starts.image}: {layers} layers, {sizes}; medians of {runs} runs."
