"""From raw runs to a table: medians, ratios, goals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Final

from scripts.benchmark.host import Host
from scripts.benchmark.link import Measured, Profile
from scripts.benchmark.pulls import Pull
from scripts.benchmark.reads import Reading

_LEAST_NOISE: Final = 0.03
"""Relative; more where overlayfs's own passes differ by more."""
_MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Subject:
    """A form of the image, as measured."""

    form: str
    layers: int
    size: int
    """Of its layers, compressed bytes."""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that one benchmark measured, as the JSON file has it."""

    layergate: str
    host: Host
    profile: Profile
    link: Measured
    subjects: dict[str, Subject]
    overlayfs: list[Pull]
    lazy: dict[str, list[Pull]]
    """By form: optimized, estargz."""
    reads: list[Reading]


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; `met` is None where there is no goal."""

    what: str
    goal: str
    measured: str
    met: bool | None


def middle(runs: list[Pull], field: str) -> float:
    """The median of one field of Pull."""
    return float(median(getattr(run, field) for run in runs))


def rows(results: Results) -> list[Row]:
    """The table's lines."""
    full = middle(results.overlayfs, "first_output")
    pulled = middle(results.overlayfs, "pulled")
    found = [
        Row("overlayfs: full pull", "", f"{pulled:.2f} s", None),
        Row("overlayfs: full pull and first output", "", f"{full:.2f} s", None),
    ]
    for form, goal in (("optimized", 0.25), ("estargz", 0.30)):
        if form in results.lazy:
            seconds = middle(results.lazy[form], "first_output")
            found.append(_ratio(f"first output, {_TITLES[form]}", seconds, full, goal))
    runs = results.lazy["optimized"]
    found.insert(3, _floor(results, runs))
    found.append(_ratio("complete and native", middle(runs, "complete"), full, 0.8))
    found += [_reading(reading) for reading in results.reads]
    found += _costs(results, runs)
    return found


_TITLES: Final = {"optimized": "eStargz with recorded order", "estargz": "eStargz without"}


def _ratio(what: str, seconds: float, of: float, goal: float) -> Row:
    ratio = seconds / of
    return Row(what, f"<= {goal:.2f}", f"{ratio:.2f} ({seconds:.2f} s)", ratio <= goal)


def _floor(results: Results, runs: list[Pull]) -> Row:
    """What the link and the container itself take, and nothing of ours could shorten."""
    seconds = middle(runs, "first_output")
    transfer = middle(runs, "bytes_at_first_output") * 8 / 1e6 / results.link.mbit_per_second
    native = middle(results.overlayfs, "first_output") - middle(results.overlayfs, "pulled")
    goal = 1.15 * transfer + 0.6 + native
    what = f"the same, against {transfer:.2f} s of transfer and {native:.2f} s of native container"
    return Row(what, f"<= {goal:.2f} s", f"{seconds:.2f} s", seconds <= goal)


def _reading(reading: Reading) -> Row:
    ours, native = median(reading.layergate), median(reading.overlayfs)
    noise = max(_LEAST_NOISE, (max(reading.overlayfs) - min(reading.overlayfs)) / 2 / native)
    what = f"{reading.kind} of the whole tree, {reading.cache}"
    measured = f"{ours / native:.2f} ({ours:.3f} s, {native:.3f} s)"
    return Row(what, f"1.00 ± {noise:.2f}", measured, ours / native <= 1 + noise)


def _costs(results: Results, runs: list[Pull]) -> list[Row]:
    subject = results.subjects["optimized"]
    fetched = middle(runs, "bytes_at_first_output")
    share = fetched / subject.size
    requests = int(middle(runs, "requests_to_first_output"))
    allowed = 2 * subject.layers + 4
    cpu, ordinary = middle(runs, "cpu_to_complete"), middle(results.overlayfs, "cpu_to_complete")
    peak = max((run.peak for run in runs), key=lambda memory: memory.pss)
    idle = max((run.idle for run in runs), key=lambda memory: memory.pss)
    return [
        Row(
            "bytes at first output",
            "< 30 % of the image",
            f"{fetched / _MB:.1f} MB, {share:.0%} of {subject.size / _MB:.1f} MB",
            share < 0.30,
        ),
        Row(
            f"requests until the container runs, {subject.layers} layers",
            f"<= {allowed}",
            str(requests),
            requests <= allowed,
        ),
        Row(
            "CPU until complete, against containerd's for the full pull",
            "<= 1.00",
            f"{cpu / ordinary:.2f} ({cpu:.2f} s, {ordinary:.2f} s)",
            cpu <= ordinary,
        ),
        Row(
            "memory, idle",
            "<= 150 MiB",
            f"PSS {idle.pss:.0f} MiB, RSS {idle.rss:.0f} MiB, {idle.processes} processes",
            idle.pss <= 150,
        ),
        Row(
            "memory, highest while streaming",
            "<= 300 MiB",
            f"PSS {peak.pss:.0f} MiB, RSS {peak.rss:.0f} MiB, {peak.processes} processes",
            peak.pss <= 300,
        ),
    ]


def markdown(results: Results) -> str:
    """The table and its conditions, for README and docs/performance.md."""
    host, link = results.host, results.link
    lines = ["| | goal | measured | met |", "|---|---|---|---|"]
    marks = {True: "yes", False: "**no**", None: ""}
    lines += [f"| {row.what} | {row.goal} | {row.measured} | {marks[row.met]} |" for row in rows(results)]
    sizes = "; ".join(
        f"{one.form} {one.size / _MB:.1f} MB in {one.layers} layers" for one in results.subjects.values()
    )
    lines += [
        "",
        f"Medians of {len(results.overlayfs)} runs, each on a fresh ext4 with the page cache dropped. "
        f"Link {results.profile} round trip, as measured {link.mbit_per_second:.0f} Mbit/s, "
        f"{link.round_trip_ms:.1f} ms. {host.cores} cores ({host.processor}), {host.memory_mib >> 10} GiB, "
        f"Linux {host.kernel}, containerd {host.containerd}{' with unpigz' if host.unpigz else ''}, "
        f"runc {host.runc}, Python {host.python}; load before {host.load}. Image: {sizes}.",
    ]
    return "\n".join(lines) + "\n"
