"""containerd's filter syntax, against the corpus of its own tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidArgument, InvalidFilter
from snapshotter.filters import FieldPath, Fields, parse_filters

CORPUS: list[dict[str, str | dict[str, str]]] = [
    {"name": "foo", "labels": {"foo": "true"}},
    {"name": "bar"},
    {"name": "foo", "labels": {"foo": "present", "more complex label": "present"}},
    {"name": "bar", "labels": {"bar": "true"}},
    {"name": "fooer", "labels": {'more complex label with \\ and "': "present"}},
    {"name": "fooer", "labels": {'more complex label with \\ and ".post': "present"}},
    {"name": "baz", "other": "too complex, yo"},
    {"name": "bazo", "other": "abc"},
    {"name": "compound", "labels": {"foo": "omg_asdf.asdf-qwer"}},
]
EVERYTHING = list(range(len(CORPUS)))


def fields_of(entry: dict[str, str | dict[str, str]]) -> Fields:
    def value(path: FieldPath) -> str | None:
        found = entry.get(path[0])
        if isinstance(found, dict):
            return found.get(".".join(path[1:]))
        return found

    return value


def matching(*filters: str) -> Sequence[int]:
    parsed = parse_filters(filters)
    return [number for number, entry in enumerate(CORPUS) if parsed.matches(fields_of(entry))]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        pytest.param("", EVERYTHING, id="empty"),
        pytest.param("name", EVERYTHING, id="present"),
        pytest.param("labels.foo", [0, 2, 8], id="label present"),
        pytest.param("labels.foo,name", [0, 2, 8], id="name and label present"),
        pytest.param("labels.foo==true", [0], id="label value"),
        pytest.param("labels.foo==omg_asdf.asdf-qwer", [8], id="punctuated value"),
        pytest.param("name==bar", [1, 3], id="name"),
        pytest.param("name!=bar", [0, 2, 4, 5, 6, 7, 8], id="not equal"),
        pytest.param("labels.foo!=true", [1, 2, 3, 4, 5, 6, 7, 8], id="not equal matches the absent"),
        pytest.param('labels.foo!=""', [0, 2, 8], id="the absent counts as empty"),
        pytest.param("name==bar,labels.bar", [3], id="name and label"),
        pytest.param('other=="too complex, yo"', [6], id="quoted value"),
        pytest.param("other~=[abc]+,name!=foo", [6, 7], id="regexp"),
        pytest.param("other~=/[abc]+/,name!=foo", [6, 7], id="regexp in slashes"),
        pytest.param("other~=|[abc]+|,name!=foo", [6, 7], id="regexp in bars"),
        pytest.param("other~=/[abc]{1,2}/,name!=foo", [6, 7], id="regexp with a comma"),
        pytest.param('other~=/[abc]{0,1}"\\//,name!=foo', [], id="regexp that matches nothing"),
        pytest.param("name~=^ba.$", [1, 3, 6], id="regexp with anchors"),
        pytest.param("name==bar,labels.bar==true", [3], id="name and label value"),
        pytest.param("name==bar,labels.bar==wrong", [], id="no match"),
        pytest.param('name==foo,labels."more complex label"', [2], id="quoted field"),
        pytest.param('labels."more complex label with \\\\ and \\""==present', [4], id="escapes"),
        pytest.param(
            'labels."more complex label with \\\\ and \\"".post==present', [5], id="quoted, then plain"
        ),
        pytest.param('name=="\\x62\\141\\u0072"', [1, 3], id="numeric escapes"),
        pytest.param("name == bar", [1, 3], id="blanks before tokens"),
        pytest.param("nosuchfield", [], id="unknown field"),
    ],
)
def test_matching(text: str, numbers: list[int]) -> None:
    assert matching(text) == numbers


def test_filters_are_alternatives() -> None:
    assert matching("name==baz", "labels.bar") == [3, 6]
    assert matching() == EVERYTHING
    assert matching("name==nobody", "") == EVERYTHING


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels.|foo|==omg_asdf.asdf-qwer", "[labels. >|||< foo|==omg_asdf.asdf-qwer]: expected a field"),
        ('labels.?"more".post==present', '[labels. >|?|< "more".post==present]: expected a field'),
        ("name==foo,", "[name==foo,]: expected a field"),
        ("labels.", "[labels.]: expected a field"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]: expected a value"),
        ("name==/x/", "expected a value"),
        ("name=bar", "expected an operator"),
        ("name===bar", "expected an operator"),
        ("name bar", "expected an operator"),
        ("name==", "expected a value"),
        ('name=="bar', "not terminated"),
        ('name=="b\\qr"', "illegal escape"),
        ('name=="\\x6"', "illegal escape"),
        ('name=="\\400"', "illegal escape"),
        ('name=="\\ud800"', "illegal escape"),
        ("name==bar baz", "unexpected input"),
        ('name=="bar"baz', "unexpected input"),
        ("name~=[", "does not compile"),
        (",", "expected a field"),
    ],
)
def test_errors_show_where(text: str, message: str) -> None:
    with pytest.raises(InvalidFilter) as raised:
        parse_filters(["name", text])
    assert message in str(raised.value)
    assert isinstance(raised.value, InvalidArgument)


def go_quoted(text: str) -> str:
    """Quote as Go's %q does, escaping all that is not plain ASCII."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\U{ord(c):08x}" for c in text) + '"'


@given(st.text(), st.text())
def test_quoting_is_undone(key: str, value: str) -> None:
    parsed = parse_filters([f"labels.{go_quoted(key)}=={go_quoted(value)}"])
    assert parsed.matches(lambda path: value if path == ("labels", key) else None)
    assert not parsed.matches(lambda path: value + "x" if path == ("labels", key) else None)


@given(st.text(alphabet='ab.,=!~"/|\\ x0\n'))
def test_nothing_but_invalid_filter_is_raised(text: str) -> None:
    try:
        parsed = parse_filters([text])
    except InvalidFilter:
        return
    assert parsed.matches(lambda path: "a") in (True, False)
