"""What was measured against what is wanted: medians, ratios within one run, percentiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Final, TypeVar

from scripts.benchmark.growth import Crowd, Growth
from scripts.benchmark.link import Measured
from scripts.benchmark.misses import LargeRead, Opens
from scripts.benchmark.pulls import Pull
from scripts.benchmark.reads import LAZY, OVERLAYFS, PEER, SWAPPED, Reading
from scripts.benchmark.results import (
    ESTARGZ,
    OPTIMIZED,
    PEER_ESTARGZ,
    PEER_OPTIMIZED,
    Results,
    Starts,
    Subject,
)
from scripts.benchmark.results import OVERLAYFS as ORDINARY

FIRST_OUTPUT: Final = {
    ("python", "1g"): 0.19,
    ("dev", "1g"): 0.105,
    ("ml", "1g"): 0.24,
    ("python", "100m"): 0.21,
    ("dev", "100m"): 0.135,
    ("ml", "100m"): 0.23,
}
"""By image and link, of overlayfs's full pull and first output: 0.85 of stargz-snapshotter 0.12's ratio."""

_AGAINST_PEER: Final = 0.85
_WITHOUT_ORDER: Final = 0.30
_COMPLETE: Final = 0.5
_COMPLETE_BY_RATE: Final = 1.1
_SLOW: Final = 500e6
"""bit/s; over a slower link the bytes themselves are the floor."""
_LAZY: Final = {"read": 1.15, "stat": 1.75}
_LEAST_NOISE: Final = 0.03
"""Relative; more where overlayfs's own passes differ by more."""
_EXCESS_MS: Final = 2.0
_LARGE: Final = 0.9
_STREAMING_MIB: Final = 300
_IDLE_MIB: Final = 120
_DISK: Final = 1.02
_LINEAR: Final = 1.1
_MB: Final = 1e6


_Measured = TypeVar("_Measured", Opens, LargeRead)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table; `met` is None where there is no goal."""

    what: str
    goal: str
    measured: str
    met: bool | None


def middle(runs: Sequence[Pull], field: str) -> float:
    """The median of one field of Pull."""
    return float(median(getattr(run, field) for run in runs))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power of the size with which cost grows between the last two sizes: 1 is linear, less is better."""
    return math.log(costs[-1] / costs[-2]) / math.log(sizes[-1] / sizes[-2])


def tables(results: Results) -> dict[str, list[Row]]:
    """All tables by their titles."""
    found = {f"{one.image}, {one.profile}": start_rows(one) for one in results.starts}
    if results.reads:
        found["Reading what is here"] = [row for reading in results.reads for row in _readings(reading)]
    for missing in results.missing:
        rows = [
            _opens(runs, missing.link) for runs in _alike(missing.opens) if any(one.opens for one in runs)
        ]
        rows += [_large(runs, missing.link) for runs in _alike(missing.large)]
        found[f"Files that are not here, {missing.profile}"] = rows
    growth = [row for one in results.growth for row in _growth(one)]
    growth += _crowds(results.images)
    growth += [_idle(crowd) for crowd in results.idle]
    if growth:
        found["Growth"] = growth
    return {title: rows for title, rows in found.items() if rows}


def start_rows(starts: Starts) -> list[Row]:
    """Cold starts of one image over one link."""
    ordinary, runs = starts.runs[ORDINARY], starts.runs[OPTIMIZED]
    full = middle(ordinary, "first_output")
    rows = [
        Row("overlayfs: full pull", "", f"{middle(ordinary, 'pulled'):.2f} s", None),
        Row("overlayfs: full pull and first output", "", f"{full:.2f} s", None),
        _ratio(
            "first output, recorded order", runs, full, FIRST_OUTPUT.get((starts.image, starts.profile.name))
        ),
        _floor(starts),
    ]
    if ESTARGZ in starts.runs:
        goal = None if _is_slow(starts) else _WITHOUT_ORDER
        rows.append(_ratio("first output, no order", starts.runs[ESTARGZ], full, goal))
    for ours, peers, what in (
        (OPTIMIZED, PEER_OPTIMIZED, "recorded order"),
        (ESTARGZ, PEER_ESTARGZ, "no order"),
    ):
        if peers in starts.runs and ours in starts.runs:
            peer = middle(starts.runs[peers], "first_output")
            rows.append(
                _ratio(f"first output, {what}, against the peer's", starts.runs[ours], peer, _AGAINST_PEER)
            )
    rows.append(_complete(starts, full))
    return rows + _costs(starts)


def _ratio(what: str, runs: Sequence[Pull], of: float, goal: float | None) -> Row:
    seconds = middle(runs, "first_output")
    ratio = seconds / of
    wanted = f"<= {goal}" if goal is not None else ""
    return Row(what, wanted, f"{ratio:.3f} ({seconds:.2f} s)", None if goal is None else ratio <= goal)


def _floor(starts: Starts) -> Row:
    """What the link and the container itself take, and nothing of ours could shorten."""
    runs, ordinary = starts.runs[OPTIMIZED], starts.runs[ORDINARY]
    seconds = middle(runs, "first_output")
    transfer = _transfer(middle(runs, "bytes_at_first_output"), starts.link)
    native = middle(ordinary, "first_output") - middle(ordinary, "pulled")
    goal = 1.15 * transfer + 0.6 + native
    what = (
        f"the same, against 1.15 x {transfer:.2f} s of transfer + 0.6 s + {native:.2f} s of native container"
    )
    return Row(what, f"<= {goal:.2f} s", f"{seconds:.2f} s", seconds <= goal)


def _complete(starts: Starts, full: float) -> Row:
    seconds = middle(starts.runs[OPTIMIZED], "complete")
    if _is_slow(starts):
        transfer = _transfer(starts.subjects["optimized"].size, starts.link)
        ratio, goal, of = seconds / transfer, _COMPLETE_BY_RATE, "bytes / link rate"
    else:
        ratio, goal, of = seconds / full, _COMPLETE, "full pull"
    on_disk = middle(starts.runs[OPTIMIZED], "on_disk")
    measured = f"{ratio:.2f} ({seconds:.2f} s; on disk {on_disk:.2f} s)"
    return Row(f"complete and native, of {of}", f"<= {goal}", measured, ratio <= goal)


def _costs(starts: Starts) -> list[Row]:
    runs, ordinary = starts.runs[OPTIMIZED], starts.runs[ORDINARY]
    subject: Subject = starts.subjects["optimized"]
    fetched = middle(runs, "bytes_at_first_output")
    requests = int(median(len(run.requests_to_start) for run in runs))
    until_output = int(median(len(run.requests_to_first_output) for run in runs))
    allowed = 2 * subject.layers + 4
    cpu, full_cpu = middle(runs, "cpu_to_complete"), middle(ordinary, "cpu_to_complete")
    peak = max((run.peak for run in starts.watched if run.peak), key=lambda memory: memory.pss)
    idle = max((run.idle for run in runs), key=lambda memory: memory.pss)
    disk, native = runs[-1].disk, ordinary[-1].disk
    return [
        Row(
            "bytes at first output",
            "",
            f"{fetched / _MB:.1f} MB, {fetched / subject.size:.0%} of {subject.size / _MB:.1f} MB",
            None,
        ),
        Row(
            f"requests until the container runs, {subject.layers} layers",
            f"<= {allowed}",
            f"{requests} ({until_output} until the first output)",
            requests <= allowed,
        ),
        Row(
            "CPU until complete, of containerd's for the full pull",
            "<= 1.00",
            f"{cpu / full_cpu:.2f} ({cpu:.2f} s, {full_cpu:.2f} s)",
            cpu <= full_cpu,
        ),
        Row(
            "memory, highest while streaming",
            f"<= {_STREAMING_MIB} MiB",
            f"PSS {peak.pss:.0f} MiB, RSS {peak.rss:.0f} MiB, {peak.processes} processes",
            peak.pss <= _STREAMING_MIB,
        ),
        Row(
            "memory, idle with this image",
            f"<= {_IDLE_MIB} MiB",
            f"PSS {idle.pss:.0f} MiB, RSS {idle.rss:.0f} MiB, {idle.processes} processes",
            idle.pss <= _IDLE_MIB,
        ),
        Row(
            "disk, of what overlayfs unpacks; compressed copy beside it",
            f"<= {_DISK}; none",
            f"{disk.unpacked / native.unpacked:.3f} ({disk.unpacked / _MB:.0f} MB); "
            f"{disk.blobs / _MB:.1f} MB (containerd's own: {native.blobs / _MB:.1f} MB)",
            disk.unpacked <= _DISK * native.unpacked and disk.blobs < native.blobs / 100,
        ),
    ]


def _readings(reading: Reading) -> list[Row]:
    native = median(reading.seconds[OVERLAYFS])
    passes = reading.seconds[OVERLAYFS]
    noise = max(_LEAST_NOISE, (max(passes) - min(passes)) / 2 / native)
    rows = []
    for ground, title, goal in (
        (SWAPPED, "after the swap", 1 + noise),
        (LAZY, "on the lazy lower, all here", _LAZY[reading.kind]),
    ):
        ours = median(reading.seconds[ground])
        what = f"{reading.image}: {reading.kind} of the whole tree, {reading.cache}, {title}"
        wanted = f"1.00 ± {noise:.2f}" if ground == SWAPPED else f"<= {goal}"
        measured = f"{ours / native:.2f} ({ours:.3f} s, {native:.3f} s)"
        rows.append(Row(what, wanted, measured, ours / native <= goal))
    if PEER in reading.seconds:
        theirs = median(reading.seconds[PEER])
        what = f"{reading.image}: {reading.kind} of the whole tree, {reading.cache}, on the peer"
        rows.append(Row(what, "", f"{theirs / native:.2f} ({theirs:.3f} s, {native:.3f} s)", None))
    return rows


def _alike(measured: Sequence[_Measured]) -> list[list[_Measured]]:
    """Runs of the same together, in the order in which they were first."""
    found: dict[tuple[str, bool], list[_Measured]] = {}
    for one in measured:
        found.setdefault((one.image, isinstance(one, Opens) and one.streaming), []).append(one)
    return list(found.values())


def _opens(runs: Sequence[Opens], link: Measured) -> Row:
    """All runs' opens together: a percentile wants many."""
    excess = _excess(chain.from_iterable(one.opens for one in runs), link)
    asked = _excess(chain.from_iterable(one.asked for one in runs), link)
    rate = median(one.mbit_per_second for one in runs)
    during = f"between streams at {rate:.0f} Mbit/s" if runs[0].streaming else "on an idle link"
    what = f"{runs[0].image}: open of a small missing file {during}, over one round trip and its transfer"
    half, most = percentile(excess, 0.5), percentile(excess, 0.99)
    measured = f"p50 {half:.1f} ms, p99 {most:.1f} ms ({len(excess)} opens)"
    if asked:
        plain = f"p50 {percentile(asked, 0.5):.1f} ms, p99 {percentile(asked, 0.99):.1f} ms"
        measured += f"; the same bytes asked for by a plain client {plain}"
    return Row(what, f"p99 <= {_EXCESS_MS} ms", measured, most <= _EXCESS_MS)


def _excess(took: Iterable[tuple[float, int]], link: Measured) -> list[float]:
    """Milliseconds over one round trip and the transfer of the bytes."""
    return [seconds * 1000 - link.round_trip_ms - _transfer(size, link) * 1000 for seconds, size in took]


def _large(runs: Sequence[LargeRead], link: Measured) -> Row:
    read = runs[0]
    seconds = median(one.seconds for one in runs)
    rate = read.compressed * 8 / 1e6 / seconds
    share = rate / link.mbit_per_second
    name = read.path.rpartition("/")[2]
    size = f"{read.compressed / _MB:.0f} MB"
    what = f"{read.image}: {name} ({size}, missing) read from start to end, of the link's rate"
    busy = median(one.busy for one in runs)
    unpacked = read.size / _MB / seconds
    measured = f"{share:.2f} ({rate:.0f} Mbit/s; {unpacked:.0f} MB/s unpacked; cores {busy:.0%} busy)"
    return Row(what, f">= {_LARGE}", measured, share >= _LARGE)


def _growth(growth: Growth) -> list[Row]:
    rows = []
    for field, what, unit in (
        ("first_output", "first output", "s"),
        ("complete", "complete", "s"),
        ("cpu_to_complete", "CPU", "s"),
        ("peak", "memory while streaming", "MiB"),
        ("idle", "memory idle", "MiB"),
    ):
        costs = [_cost(pull, field) for pull in growth.lazy]
        listed = ", ".join(f"{cost:.2f}" if unit == "s" else f"{cost:.0f}" for cost in costs)
        rows.append(
            _line(f"{_listed(growth.sizes)} {growth.of}: {what}", growth.sizes, costs, f"{listed} {unit}")
        )
    return rows


def _cost(pull: Pull, field: str) -> float:
    value = getattr(pull, field)
    return float(value.pss) if field in ("peak", "idle") else float(value)


def _crowds(crowds: Sequence[Crowd]) -> list[Row]:
    if len(crowds) < 2:
        return []
    sizes = [crowd.images for crowd in crowds]
    memory = [crowd.idle.pss for crowd in crowds]
    seconds = [crowd.first_output for crowd in crowds]
    head = f"{_listed(sizes)} images"
    return [
        _line(
            f"{head}: first output of the last",
            sizes,
            seconds,
            ", ".join(f"{one:.2f}" for one in seconds) + " s",
        ),
        _line(f"{head}: memory idle", sizes, memory, ", ".join(f"{one:.0f}" for one in memory) + " MiB"),
    ]


def _line(what: str, sizes: Sequence[int], costs: Sequence[float], measured: str) -> Row:
    power = exponent(sizes, costs)
    return Row(what, f"power of size <= {_LINEAR}", f"{measured}; power {power:.2f}", power <= _LINEAR)


def _idle(crowd: Crowd) -> Row:
    memory = crowd.idle
    measured = f"PSS {memory.pss:.0f} MiB, RSS {memory.rss:.0f} MiB, {memory.processes} processes"
    what = f"memory, idle with {crowd.images} complete images of 15,000 files"
    return Row(what, f"<= {_IDLE_MIB} MiB", measured, memory.pss <= _IDLE_MIB)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size:,}" for size in sizes)


def _transfer(size: float, link: Measured) -> float:
    return size * 8 / 1e6 / link.mbit_per_second


def _is_slow(starts: Starts) -> bool:
    return starts.profile.rate < _SLOW
