"""The pure parts of scripts/bench: what it makes of raw runs, from fixed data."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from fetcher.toc import parse_toc
from fetcher.tree import LayerTree, build_tree
from scripts.benchmark.engines import Disk
from scripts.benchmark.goals import Row, exponent, middle, percentile, tables
from scripts.benchmark.group import Memory
from scripts.benchmark.growth import Crowd, Growth, files_layer
from scripts.benchmark.host import Host
from scripts.benchmark.link import PROFILES, Measured
from scripts.benchmark.misses import LargeRead, Opens, largest_file, small_files
from scripts.benchmark.peer import configuration, fetched_layers
from scripts.benchmark.plots import phase_lengths, write_plots
from scripts.benchmark.pulls import Pull, Sample, sample_at, timeline
from scripts.benchmark.reads import LAZY, OVERLAYFS, PEER, SWAPPED, Reading
from scripts.benchmark.report import markdown
from scripts.benchmark.results import (
    ESTARGZ,
    OPTIMIZED,
    PEER_OPTIMIZED,
    Missing,
    Results,
    Starts,
    Subject,
)
from scripts.benchmark.results import OVERLAYFS as ORDINARY
from tests import estargz
from tests.estargz import Entry

HOST = Host("6.18.0", "Some processor", 2, 8192, "1.6.20", "1.1.5", "3.11.2", True, 0.1)
LINK = Measured(900.0, 2.5)


def pull(*, pulled: float, first_output: float, complete: float, **values: object) -> Pull:
    made = Pull(
        pulled=pulled,
        first_output=first_output,
        complete=complete,
        on_disk=complete + 1.5,
        bytes_at_first_output=45_000_000,
        bytes_at_complete=200_000_000,
        requests_to_start=["GET /v2/"] * 9,
        requests_to_first_output=["GET /v2/"] * 11,
        cpu_to_first_output=0.5,
        cpu_to_complete=4.0,
        peak=None,
        idle=Memory(90.0, 120.0, 3),
        disk=Disk(500_000_000, 4096),
        busy_before=0.01,
        timeline=[(0.0, 0), (first_output, 45_000_000), (complete, 200_000_000)],
    )
    return replace(made, **values)  # type: ignore[arg-type]  # each has its field's type


def starts(image: str = "python", link: str = "1g") -> Starts:
    made = Starts(
        image,
        PROFILES[link],
        LINK,
        {form: Subject(form, 3, 200_000_000) for form in ("plain", "optimized", "estargz")},
    )
    native = {"cpu_to_complete": 8.0, "disk": Disk(500_000_000, 190_000_000)}
    made.runs[ORDINARY] = [
        pull(pulled=9.0 + extra, first_output=10.0 + extra, complete=9.0, **native)
        for extra in (0.0, 7.0, 0.2)
    ]
    made.runs[OPTIMIZED] = [pull(pulled=0.5, first_output=first, complete=4.0) for first in (1.8, 1.7, 9.9)]
    made.runs[ESTARGZ] = [pull(pulled=0.5, first_output=4.0, complete=5.0)]
    made.watched.extend(
        pull(pulled=0.5, first_output=2.5, complete=4.5, peak=Memory(pss, 400.0, 6)) for pss in (200.0, 190.0)
    )
    return made


def results() -> Results:
    """Something of everything."""
    ground = {OVERLAYFS: [1.0, 1.1, 0.9], SWAPPED: [1.02, 1.02, 1.02], LAZY: [1.3, 1.3, 1.3]}
    missing = Missing(PROFILES["1g"], LINK)
    missing.opens.append(Opens("python", True, 800.0, [(0.004, 9_000)] * 98))
    missing.opens.append(Opens("python", True, 700.0, [(0.004, 9_000), (0.020, 9_000)]))
    asked = [(0.003, 9_000), (0.0055, 9_000)]
    missing.opens.append(Opens("python", False, 0.0, [(0.004, 9_000)], asked))
    missing.large.append(LargeRead("python", "usr/lib/large.so", 100_000_000, 40_000_000, 0.5, 0.93))
    grown = [
        pull(pulled=0.5, first_output=1.0, complete=size / 1000, peak=Memory(pss, 900.0, 6))
        for size, pss in ((1000, 200.0), (2000, 200.0), (4000, 900.0))
    ]
    return Results(
        "0.0",
        HOST,
        links={str(PROFILES["1g"]): LINK},
        starts=[starts()],
        reads=[
            Reading("python", "stat", "warm", 10, 100, ground),
            Reading("python", "read", "cold", 10, 100, ground),
        ],
        missing=[missing],
        growth=[Growth("files", [1000, 2000, 4000], grown, grown)],
        images=[Crowd(1, 0.4, 0.9, Memory(80, 100, 3)), Crowd(200, 0.5, 1.0, Memory(100, 120, 3))],
        idle=[Crowd(10, 0.4, 0.9, Memory(130, 160, 3))],
    )


def row(rows: list[Row], what: str) -> Row:
    (found,) = (one for one in rows if what in one.what)
    return found


def test_figures_are_medians() -> None:
    assert middle(starts().runs[OPTIMIZED], "first_output") == 1.8


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0], 0.99) == 3


def test_linear_growth_has_the_exponent_one() -> None:
    assert exponent([1, 10, 20], [5, 30, 60]) == pytest.approx(1)
    assert exponent([10, 20], [10, 40]) == pytest.approx(2)


def test_cold_starts_are_measured_against_overlayfs_in_the_same_run() -> None:
    (rows, *_) = tables(results()).values()
    assert row(rows, "first output, recorded order") == Row(
        "first output, recorded order", "<= 0.19", "0.176 (1.80 s)", True
    )
    floor = row(rows, "the same")
    # 1.15 times 0.4 s of transfer, 0.6 s, and the second that the container took after the full pull
    assert (floor.goal, floor.measured, floor.met) == ("<= 2.06 s", "1.80 s", True)
    assert row(rows, "first output, no order").met is False
    assert row(rows, "complete and native, of full pull").measured == "0.39 (4.00 s; on disk 5.50 s)"
    requests = row(rows, "requests until the container runs, 3 layers")
    assert (requests.goal, requests.measured) == ("<= 10", "9 (11 until the first output)")
    assert row(rows, "CPU until complete").met is True
    assert row(rows, "disk").met is True
    assert row(rows, "memory, highest while streaming").measured.startswith("PSS 200 MiB")


def test_over_a_slow_link_the_bytes_are_the_measure() -> None:
    (rows,) = tables(Results("0.0", HOST, starts=[starts(link="100m")])).values()
    complete = row(rows, "complete and native, of bytes / link rate")
    assert (complete.goal, complete.met) == ("<= 1.1", False)
    assert row(rows, "first output, no order").met is None


def test_a_compressed_copy_is_seen() -> None:
    one = starts()
    one.runs[OPTIMIZED].append(
        pull(pulled=0.5, first_output=1.8, complete=4.0, disk=Disk(500_000_000, 190_000_000))
    )
    (rows,) = tables(Results("0.0", HOST, starts=[one])).values()
    assert row(rows, "disk").met is False


def test_the_peer_is_one_more_measure() -> None:
    one = starts()
    one.runs[PEER_OPTIMIZED] = [pull(pulled=1.0, first_output=2.0, complete=20.0)]
    (rows,) = tables(Results("0.0", HOST, starts=[one])).values()
    assert row(rows, "against the peer's").measured == "0.900 (1.80 s)"
    assert row(rows, "against the peer's").met is False


def test_reads_have_other_goals_on_a_lazy_lower_than_after_the_swap() -> None:
    rows = tables(results())["Reading what is here"]
    assert [one.met for one in rows] == [True, True, True, False]
    assert rows[0].goal == "1.00 ± 0.10"


def test_what_the_peer_takes_to_read_is_told_without_a_goal() -> None:
    ground = {OVERLAYFS: [1.0], SWAPPED: [1.0], LAZY: [1.0], PEER: [3.0]}
    one = Results("0.0", HOST, reads=[Reading("python", "stat", "warm", 10, 100, ground)])
    found = row(tables(one)["Reading what is here"], "on the peer")
    assert (found.measured, found.met) == ("3.00 (3.000 s, 1.000 s)", None)


def test_opens_of_all_runs_are_one_distribution_over_round_trip_and_transfer() -> None:
    rows = tables(results())["Files that are not here, 1000 Mbit/s, 2 ms"]
    opens = row(rows, "open of a small missing file between streams at 750 Mbit/s")
    assert opens.measured == "p50 1.4 ms, p99 1.4 ms (100 opens)"
    assert opens.met is True
    assert row(rows, "large.so").measured == "0.71 (640 Mbit/s; 200 MB/s unpacked; cores 93% busy)"
    idle = row(rows, "open of a small missing file on an idle link")
    # The plain client's median: 3 ms less 2.5 ms of round trip and 0.08 ms of transfer.
    assert "plain client p50 0.4 ms, p99 2.9 ms" in idle.measured


def test_growth_is_judged_by_its_last_doubling() -> None:
    rows = tables(results())["Growth"]
    assert row(rows, "1,000, 2,000, 4,000 files: complete").met is True
    assert row(rows, "files: memory while streaming").met is False
    assert row(rows, "1, 200 images: memory idle").met is True
    assert row(rows, "10 complete images").met is False


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    path = str(tmp_path / "results.json")
    results().write(path)
    assert Results.read(path) == results()


def test_a_report_has_conditions_tables_and_plots(tmp_path: Path) -> None:
    written = write_plots(results(), str(tmp_path))
    text = markdown(results(), written)
    assert text.startswith(
        "layergate 0.0. 2 cores (Some processor), 8 GiB, Linux 6.18.0, containerd 1.6.20 with unpigz"
    )
    assert "900 Mbit/s, 2.5 ms" in text
    assert "| complete and native, of full pull | <= 0.5 | 0.39 (4.00 s; on disk 5.50 s) | yes |" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bytes-python-1g.png",
        "growth-files.png",
        "growth-images.png",
        "phases-python-1g.png",
    ]
    for _, name in written:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text


def test_phases_follow_each_other() -> None:
    assert phase_lengths(starts().runs[OPTIMIZED]) == pytest.approx([0.5, 1.3, 2.2])
    assert phase_lengths(starts().runs[ORDINARY]) == pytest.approx([9.2, 1.0, 0.0])


def test_a_timeline_keeps_the_ends_of_a_pause() -> None:
    sizes = [100, 100, 100, 100, 300, 400, 400]
    samples = [Sample(50.0 + number, size, 0, 0.0) for number, size in enumerate(sizes)]
    assert timeline(51.0, samples) == [(0.0, 0), (2.0, 0), (3.0, 200), (4.0, 300), (5.0, 300)]
    assert sample_at(samples, 53.5).received == 300
    assert sample_at(samples, 99.0).received == 400


def tree(entries: list[Entry]) -> LayerTree:
    layer = estargz.build(entries)
    return build_tree(parse_toc(layer.toc_json), end=len(layer.blob))


def test_missed_files_are_small_apart_and_of_one_layer_alone() -> None:
    noise = random.Random(1)
    below = tree(
        [
            estargz.file("replaced", b"below"),
            estargz.dir("gone/"),
            estargz.file("gone/file", b"hidden"),
            *(estargz.file(f"file{number}", noise.randbytes(40_000)) for number in range(10)),
            estargz.file("large", noise.randbytes(100_000)),
        ]
    )
    above = tree([estargz.file("replaced", b"above"), estargz.whiteout("gone"), estargz.file("own", b"x")])
    trees = {"above": above, "below": below}
    found = [(file.layer, file.path) for file in small_files(trees)]
    # From the end: `large` is too large, and of files of 40 kB only each third is far enough from the next.
    assert found == [*(("below", f"file{number}") for number in (9, 6, 3, 0)), ("above", "own")]
    assert largest_file(trees).path == "large"


def test_a_layer_to_grow_with_has_as_many_files_as_it_says() -> None:
    layer = files_layer(7, 250)
    built = build_tree(parse_toc(layer.toc_json), end=len(layer.blob))
    assert sum(1 for _ in built.regular_files()) == 250
    assert built.landmark is None


def test_what_the_peer_says_of_its_layers(tmp_path: Path) -> None:
    state = tmp_path / "snapshotter/snapshots/3/fs/.stargz-snapshotter"
    state.mkdir(parents=True)
    said = '{"digest":"sha256:%s","size":100,"fetchedSize":%d,"fetchedPercent":%s}\n'
    (state / "sha256:aa.json").write_text(said % ("aa", 100, "100"))
    (state / "sha256:bb.json").write_text(said % ("bb", 99, "99.0"))
    (state / "sha256:cc.json").write_text('{"digest":')
    assert fetched_layers(str(tmp_path)) == {"sha256:aa"}


def test_the_peer_is_told_to_speak_plain_http() -> None:
    assert configuration("10.0.0.1:5000").splitlines() == [
        '[[resolver.host."10.0.0.1:5000".mirrors]]',
        'host = "10.0.0.1:5000"',
        "insecure = true",
    ]
