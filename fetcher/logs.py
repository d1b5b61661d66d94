"""Logs: one line an event, `timestamp=... level=... event=... key=value ...`. Never a secret in it.

    log = get_logger("layergate.fetcher")
    log.info("layer_opened", layer=layer, seconds=0.03)

The form is logfmt. The standard library's logging and the libraries over it cost every
command 50 ms and 6 MB at its start; this costs nothing, and nobody needs their handlers here.
Thread-safe: a line is one write.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Final, Protocol

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_NEEDS_QUOTES: Final = re.compile(r'[\s"=\\\x00-\x1f\x7f-\x9f]')
# All that a terminal may take for a command: names come from images.
_ESCAPES: Final = {chr(code): f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
    '"': '\\"',
    "\\": "\\\\",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
}


class Stream(Protocol):
    """Where lines go."""

    def write(self, text: str, /) -> object:
        """Take one line, its newline included."""
        ...

    def flush(self) -> object:
        """Have it seen."""
        ...


class _Output:
    """The process's one output, and what every line of it says."""

    def __init__(self) -> None:
        self.threshold = LEVELS["info"]
        self.stream: Stream | None = None
        self.context: dict[str, object] = {}
        self.captured: list[dict[str, object]] | None = None


_output: Final = _Output()


def configure_logs(level: str, *, stream: Stream | None = None, **context: object) -> None:
    """Set up this process's logs: the least level, where to (standard error), and fields of every line."""
    _output.threshold = LEVELS[level]
    _output.stream = stream
    _output.context = context


@contextmanager
def captured_logs() -> Iterator[list[dict[str, object]]]:
    """Collect events, with their level, instead of writing them: for tests."""
    before, _output.captured = _output.captured, []
    try:
        yield _output.captured
    finally:
        _output.captured = before


class Logger:
    """Writes events; `exc_info` is an exception whose traceback belongs to the event."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, event: str, **fields: object) -> None:
        """For whoever looks into layergate itself."""
        self._log("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """What an operator would like to see happen."""
        self._log("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """What will be made up for, but costs somebody something."""
        self._log("warning", event, fields)

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: object) -> None:
        """What an operator should look at."""
        if exc_info is not None:
            fields["exception"] = "".join(traceback.format_exception(exc_info)).rstrip()
        self._log("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        self.error(event, exc_info=sys.exc_info()[1], **fields)

    def _log(self, level: str, event: str, fields: dict[str, object]) -> None:
        if _output.captured is not None:
            _output.captured.append({"event": event, "log_level": level, **fields})
            return
        if LEVELS[level] < _output.threshold:
            return
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        words = {"timestamp": now, "level": level, "event": event, "logger": self.name}
        line = " ".join(
            f"{key}={_word(value)}" for key, value in {**words, **_output.context, **fields}.items()
        )
        stream = _output.stream or sys.stderr
        # Where nobody reads it any more, or the disk is full or fails, a line is lost and nothing else.
        with suppress(OSError):
            stream.write(line + "\n")
            stream.flush()


def get_logger(name: str) -> Logger:
    """The logger of one part, `layergate.<part>`."""
    return Logger(name)


def _word(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if not _NEEDS_QUOTES.search(text):
        return text
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'
