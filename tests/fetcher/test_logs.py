"""Logs: one line an event, whatever is in it."""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Iterator

import pytest

from fetcher.logs import captured_logs, configure_logs, get_logger

log = get_logger("layergate.test")


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logs("info", stream=stream)
    yield stream
    configure_logs("info")


def test_an_event_is_one_line_of_pairs(output: io.StringIO) -> None:
    log.info("layer_opened", layer="abc", seconds=0.03, complete=True, reason=None)
    line = output.getvalue()
    assert re.fullmatch(
        r"timestamp=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z level=info event=layer_opened "
        r"logger=layergate\.test layer=abc seconds=0\.03 complete=true reason=\n",
        line,
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("two words", '"two words"'),
        ('a "quote"', '"a \\"quote\\""'),
        ("a\nb\tc", '"a\\nb\\tc"'),
        ("key=value", '"key=value"'),
        ("back\\slash", '"back\\\\slash"'),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_values_are_quoted_where_they_must_be(output: io.StringIO, value: str, written: str) -> None:
    log.warning("event", field=value)
    assert output.getvalue().endswith(f" field={written}\n")
    assert output.getvalue().count("\n") == 1


def test_a_traceback_stays_on_the_line(output: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    line = output.getvalue()
    assert line.count("\n") == 1
    assert 'exception="Traceback' in line
    assert "ValueError: broken" in line


def test_less_than_the_level_is_not_written(output: io.StringIO) -> None:
    configure_logs("warning", stream=output)
    log.info("quiet")
    log.debug("quieter")
    assert output.getvalue() == ""
    log.error("loud")
    assert "event=loud" in output.getvalue()


def test_context_is_on_every_line(output: io.StringIO) -> None:
    configure_logs("info", stream=output, layer="abc")
    log.info("one")
    log.info("two", layer="other")
    first, second = output.getvalue().splitlines()
    assert first.endswith("layer=abc")
    assert second.endswith("layer=other")


def test_captured_events_are_not_written(output: io.StringIO) -> None:
    with captured_logs() as events:
        log.info("seen", number=1)
    log.info("written")
    assert events == [{"event": "seen", "log_level": "info", "number": 1}]
    assert "seen" not in output.getvalue()


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "nobody reads")

        def flush(self) -> None:
            raise AssertionError("nothing to flush")

    configure_logs("info", stream=Broken())
    try:
        get_logger("layergate.test").info("lost")
    finally:
        configure_logs("info")
