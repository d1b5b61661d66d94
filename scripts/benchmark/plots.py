"""Plots of what was measured, as PNG files: phases, bytes over time, cost against size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.benchmark.goals import middle
from scripts.benchmark.growth import Crowd, Growth
from scripts.benchmark.pulls import Pull
from scripts.benchmark.results import OVERLAYFS, Results, Starts

mpl.use("Agg")

_PHASES: Final = ("pull", "container to first output", "until complete and native")
_COLOURS: Final = ("#4477aa", "#66ccee", "#bbbbbb")
_MB: Final = 1e6


def write_plots(results: Results, directory: str) -> list[tuple[str, str]]:
    """Write all plots that the results have data for; their titles and file names."""
    written = []
    for title, name, figure in _figures(results):
        figure.savefig(os.path.join(directory, name), dpi=120)
        written.append((title, name))
    return written


def _figures(results: Results) -> Iterator[tuple[str, str, Figure]]:
    for starts in results.starts:
        name = f"{starts.image}-{starts.profile.name}"
        title = f"{starts.image}, {starts.profile}"
        yield f"Phases: {title}", f"phases-{name}.png", _phases(starts, title)
        yield f"Bytes over time: {title}", f"bytes-{name}.png", _bytes(starts, title)
    for growth in results.growth:
        yield f"Growth: {growth.of}", f"growth-{growth.of}.png", _growth(growth)
    if results.images:
        yield "Growth: images", "growth-images.png", _crowds(results.images)


def phase_lengths(runs: Sequence[Pull]) -> list[float]:
    """Seconds of each phase after the one before it; 0 where it had ended before that one did."""
    ends = [middle(runs, field) for field in ("pulled", "first_output", "complete")]
    reached = 0.0
    lengths = []
    for end in ends:
        lengths.append(max(0.0, end - reached))
        reached = max(reached, end)
    return lengths


def _phases(starts: Starts, title: str) -> Figure:
    names = list(starts.runs)
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    lengths = [phase_lengths(starts.runs[name]) for name in names]
    begins = [0.0] * len(names)
    for number, (phase, colour) in enumerate(zip(_PHASES, _COLOURS, strict=True)):
        widths = [one[number] for one in lengths]
        axes.barh(names, widths, left=begins, label=phase, color=colour)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(title=title, xlabel="seconds since the pull was begun")
    axes.legend(fontsize="small")
    return figure


def _bytes(starts: Starts, title: str) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, runs in starts.runs.items():
        run = _typical(runs)
        (line,) = axes.plot(
            [at for at, _ in run.timeline], [size / _MB for _, size in run.timeline], label=name
        )
        marks = [(run.first_output, "o"), *([] if name == OVERLAYFS else [(run.complete, "s")])]
        for at, mark in marks:
            axes.plot([at], [_at(run, at) / _MB], mark, color=line.get_color())
    axes.plot([], [], "o", color="black", label="first output")
    axes.plot([], [], "s", color="black", label="complete (layergate: native from here on)")
    axes.set(title=title, xlabel="seconds since the pull was begun", ylabel="MB over the link")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def _typical(runs: Sequence[Pull]) -> Pull:
    """The run whose first output is nearest to the median."""
    typical = median(run.first_output for run in runs)
    return min(runs, key=lambda run: abs(run.first_output - typical))


def _at(run: Pull, seconds: float) -> int:
    return max((size for at, size in run.timeline if at <= seconds), default=0)


def _growth(growth: Growth) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    _lines(
        time,
        growth.sizes,
        {
            "overlayfs: pull": [run.pulled for run in growth.overlayfs],
            "layergate: first output": [run.first_output for run in growth.lazy],
            "layergate: complete": [run.complete for run in growth.lazy],
            "layergate: CPU": [run.cpu_to_complete for run in growth.lazy],
        },
        growth.of,
        "seconds",
    )
    _lines(
        memory,
        growth.sizes,
        {
            "streaming, PSS": [run.peak.pss for run in growth.lazy if run.peak],
            "idle, PSS": [run.idle.pss for run in growth.lazy],
            "idle, RSS": [run.idle.rss for run in growth.lazy],
        },
        growth.of,
        "MiB",
    )
    return figure


def _crowds(crowds: Sequence[Crowd]) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    sizes = [crowd.images for crowd in crowds]
    seconds = {
        "the last image: pull": [crowd.pulled for crowd in crowds],
        "the last image: first output": [crowd.first_output for crowd in crowds],
    }
    _lines(time, sizes, seconds, "images", "seconds")
    sizes_of = {"idle, PSS": [c.idle.pss for c in crowds], "idle, RSS": [c.idle.rss for c in crowds]}
    _lines(memory, sizes, sizes_of, "images", "MiB")
    return figure


def _lines(axes: Axes, sizes: Sequence[int], lines: dict[str, list[float]], of: str, unit: str) -> None:
    for label, values in lines.items():
        axes.plot(sizes, values, "o-", label=label)
    axes.set(xlabel=of, ylabel=unit)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
