"""Records: their form on disk, what is refused, and merging workloads. Pure."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.errors import FormatError
from fetcher.record import (
    FILES_LIMIT,
    SIZE_LIMIT,
    VERSION,
    Header,
    OpenedFile,
    Record,
    extend_record,
    format_record,
    merge_records,
    parse_record,
    unite,
)

HEADER = b'{"layergate_record": 1}\n'


def record(*files: str | OpenedFile, **fields: object) -> Record:
    header = Header(layergate_record=VERSION, **fields)  # type: ignore[arg-type] # each test's own
    opened = [
        OpenedFile(file, number / 10) if isinstance(file, str) else file for number, file in enumerate(files)
    ]
    return Record(header, tuple(opened))


def paths(merged: Record) -> list[str]:
    return [file.path for file in merged.files]


def test_what_was_written_is_read_again() -> None:
    written = record(
        "usr/bin/python3",
        OpenedFile("srv/large", 0.5, [(0, 4096), (8192, 9000)]),
        "a name with \udcff and ☃",
        image="registry.example/python:3",
        command=["python3", "-c", "pass"],
        started=1764000000.5,
        seconds=9.25,
        incomplete=True,
    )
    data = format_record(written)
    assert data.isascii()
    assert parse_record(data, name="r") == written


def test_the_form_is_a_line_for_the_header_and_one_a_file() -> None:
    data = format_record(record("etc/passwd", OpenedFile("large", 1.5, [(0, 10)]), image="i"))
    assert [json.loads(line) for line in data.splitlines()] == [
        {"layergate_record": 1, "image": "i"},
        {"path": "etc/passwd", "at": 0.0},
        {"path": "large", "at": 1.5, "ranges": [[0, 10]]},
    ]


def test_fields_that_are_not_known_are_passed_over() -> None:
    data = b'{"layergate_record": 1, "mood": "good"}\n{"path": "a", "colour": "red"}\n'
    assert paths(parse_record(data, name="r")) == ["a"]


def test_paths_are_cleaned_and_ranges_put_in_order() -> None:
    data = HEADER + b'{"path": "/usr//bin/../lib/x", "ranges": [[9, 12], [0, 4], [3, 9]]}\n\n'
    assert parse_record(data, name="r").files == (OpenedFile("usr/lib/x", 0.0, [(0, 12)]),)


def test_a_line_that_was_cut_short_is_left_out() -> None:
    assert paths(parse_record(HEADER + b'{"path": "a"}\n{"path": "b"', name="r")) == ["a"]


def test_a_path_that_comes_again_was_read_in_more_parts() -> None:
    data = HEADER + b"".join(
        [
            b'{"path": "a", "at": 1, "ranges": [[0, 5]]}\n',
            b'{"path": "b", "at": 2}\n',
            b'{"path": "a", "at": 3, "ranges": [[7, 9]]}\n',
        ]
    )
    expected = (OpenedFile("a", 1.0, [(0, 5), (7, 9)]), OpenedFile("b", 2.0))
    assert parse_record(data, name="r").files == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no header"),
        (b'{"layergate_record": 1}', "no header"),
        (b"usr/bin/python3\n", "no header"),
        (b'{"path": "a"}\n', "no header"),
        (b'{"layergate_record": 2}\n', "version 2"),
        (HEADER + b"[]\n", "line 2"),
        (HEADER + b'{"path": "a"}\n{"at": 1}\n', "line 3"),
        (HEADER + b'{"path": ""}\n', "no path"),
        (HEADER + b'{"path": "../.."}\n', "no path"),
        (HEADER + b'{"path": "a\\u0000"}\n', "no path"),
        (HEADER + b'{"path": "\\ud800"}\n', "surrogates"),
        (HEADER + b'{"path": "' + b"a" * 5000 + b'"}\n', "no path"),
        (HEADER + b'{"path": "a", "at": -1}\n', "at"),
        (HEADER + b'{"path": "a", "at": "soon"}\n', "at"),
        (HEADER + b'{"path": "a", "ranges": [[5, 5]]}\n', "ranges"),
        (HEADER + b'{"path": "a", "ranges": [[-5, 5]]}\n', "ranges"),
        (HEADER + b'{"path": "a", "ranges": [[1]]}\n', "ranges"),
        (HEADER + b'{"path": "\xff"}\n', "line 2"),
        (HEADER + b'{"path": "a"}\n' * (FILES_LIMIT + 1), f"at most {FILES_LIMIT}"),
        (b"x" * (SIZE_LIMIT + 1), f"at most {SIZE_LIMIT}"),
    ],
    ids=range(20),
)
def test_what_is_no_record_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        parse_record(data, name="kept.jsonl")
    assert str(caught.value).startswith("kept.jsonl")


@given(st.binary(max_size=200))
def test_nothing_but_format_errors_comes_of_any_bytes(data: bytes) -> None:
    for candidate in (data, HEADER + data + b"\n"):
        with suppress(FormatError):
            parse_record(candidate, name="r")


def test_workloads_are_interleaved_by_what_each_opened_first() -> None:
    web = record("sh", "python", "flask", "app")
    job = record("sh", "python", "pandas", "job", "data", "more")
    assert paths(merge_records([web, job])) == [
        "sh",
        "python",
        "flask",
        "pandas",
        "app",
        "job",
        "data",
        "more",
    ]


def test_a_file_that_one_workload_needs_early_comes_early() -> None:
    assert paths(merge_records([record("a", "b", "c", "late"), record("late")])) == ["a", "late", "b", "c"]


def test_ranges_are_united_and_whole_files_stay_whole() -> None:
    one = record(OpenedFile("part", 1.0, [(0, 10), (20, 30)]), OpenedFile("whole", 2.0, [(0, 10)]))
    other = record(OpenedFile("whole", 0.5), OpenedFile("part", 0.75, [(5, 25), (40, 50)]))
    merged = {file.path: file for file in merge_records([one, other]).files}
    assert merged["part"] == OpenedFile("part", 0.75, [(0, 30), (40, 50)])
    assert merged["whole"] == OpenedFile("whole", 0.5)


def test_the_header_says_what_was_merged() -> None:
    header = merge_records(
        [
            record("a", image="one", started=20.0, seconds=3.0, chain="c", layers=["l"]),
            record("b", image="two", images=["one"], started=10.0, seconds=9.0, chain="c", incomplete=True),
            record("c", workloads=3, chain="c"),
        ]
    ).header
    assert (header.image, header.images) == ("one", ["two"])
    assert (header.seconds, header.incomplete, header.workloads) == (9.0, True, 5)
    assert (header.chain, header.layers) == ("c", ["l"])


def test_records_of_different_images_have_no_chain_in_common() -> None:
    header = merge_records([record("a", chain="c", layers=["l"]), record("b", chain="d")]).header
    assert (header.chain, header.layers) == ("", [])


def test_one_record_is_itself_and_none_cannot_be_merged() -> None:
    alone = record("b", "a", image="i")
    assert merge_records([alone]) is alone
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_records([])


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), min_size=1, max_size=4))
def test_merging_loses_and_invents_nothing_and_keeps_each_first(workloads: list[list[str]]) -> None:
    merged = paths(merge_records([record(*files) for files in workloads]))
    assert sorted(merged) == sorted({path for files in workloads for path in files})
    firsts = {files[0] for files in workloads if files}
    assert set(merged[: len(firsts)]) == firsts
    for files in workloads:
        for place, path in enumerate(files):
            assert merged.index(path) < (place + 1) * len(workloads)


def test_an_extended_record_keeps_its_order_and_adds_what_is_new_behind_it() -> None:
    extended = extend_record(record("b", "a", image="i"), record("c", "a", "d", images=["i"]))
    assert paths(extended) == ["b", "a", "c", "d"]
    assert extended.header.image == "i"


@pytest.mark.parametrize(
    ("ranges", "united"),
    [
        ([], []),
        ([(5, 6), (0, 1)], [(0, 1), (5, 6)]),
        ([(0, 5), (5, 9)], [(0, 9)]),
        ([(0, 9), (2, 3), (8, 12)], [(0, 12)]),
    ],
)
def test_uniting_ranges(ranges: list[tuple[int, int]], united: list[tuple[int, int]]) -> None:
    assert unite(ranges) == united
