"""containerd's filter syntax: text in, a predicate out. Pure.

    selectors := selector ("," selector)*          all must match
    selector  := fieldpath [operator value]        without operator: the field is present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_-]+
    operator  := "==" | "!=" | "~="
    value     := quoted | [^\\s,]+                  `~=` also takes /quoted/ and |quoted|
    quoted    := a Go string literal in double quotes

It follows containerd's pkg/filters to the letter, blanks included (allowed
before a token, not before a comma), but for one point: a regular expression
that does not compile is an error here and matches nothing there.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from snapshotter.errors import InvalidFilter

FieldPath = tuple[str, ...]
Fields = Callable[[FieldPath], str | None]
"""What a filter sees of an object: the value at a path, or None when it is absent."""


class Operator(enum.Enum):
    """How a selector compares; PRESENT has no value to compare with."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    """One comparison. `value` is a regular expression for MATCHES."""

    fieldpath: FieldPath
    operator: Operator
    value: str = ""

    def matches(self, fields: Fields) -> bool:
        """Compare; an absent field counts as empty for `!=` and `~=`."""
        found = fields(self.fieldpath)
        match self.operator:
            case Operator.PRESENT:
                return found is not None
            case Operator.EQUAL:
                return found == self.value
            case Operator.NOT_EQUAL:
                return (found or "") != self.value
            case Operator.MATCHES:
                return re.search(self.value, found or "") is not None


@dataclass(frozen=True, slots=True)
class Filter:
    """Alternatives, each a list of selectors that must all match."""

    alternatives: tuple[tuple[Selector, ...], ...]

    def matches(self, fields: Fields) -> bool:
        """True if any alternative matches, or if there are none."""
        if not self.alternatives:
            return True
        return any(all(selector.matches(fields) for selector in all_of) for all_of in self.alternatives)


def parse_filters(texts: Sequence[str]) -> Filter:
    """Make one predicate of the filters of a List request, which are OR-ed.

    An empty filter matches everything. Raises InvalidFilter.
    """
    return Filter(tuple(_Parser(text).selectors() if text else () for text in texts))


_BLANK = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,\x00-\x1f\x7f]+")
_QUOTED = {
    quote: re.compile(rf"{re.escape(quote)}((?:[^\\\n\x00{re.escape(quote)}]|\\[^\n])*){re.escape(quote)}")
    for quote in '"/|'
}
_ESCAPE = re.compile(
    r"\\(?:([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))|([^\\]+)", re.DOTALL
)
_SIMPLE_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}


class _Parser:
    """A recursive descent over one filter."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> tuple[Selector, ...]:
        found = [self._selector()]
        while self._at < len(self._text):
            if self._text[self._at] != ",":
                raise self._error("unexpected input")
            self._at += 1
            found.append(self._selector())
        return tuple(found)

    def _selector(self) -> Selector:
        fieldpath = [self._field()]
        while self._text.startswith(".", self._at):
            self._at += 1
            fieldpath.append(self._field())
        if self._at == len(self._text) or self._text[self._at] == ",":
            return Selector(tuple(fieldpath), Operator.PRESENT)
        operator = self._operator()
        value = self._value(operator)
        if operator is Operator.MATCHES:
            try:
                re.compile(value)
            except (re.error, ValueError, OverflowError, RecursionError) as error:
                raise self._error(f"the regular expression {value!r} does not compile: {error}") from error
        return Selector(tuple(fieldpath), operator, value)

    def _field(self) -> str:
        self._skip_blanks()
        if (quoted := self._quoted('"')) is not None:
            return quoted
        if (found := _FIELD.match(self._text, self._at)) is None:
            raise self._error("expected a field, plain or in double quotes")
        self._at = found.end()
        return found.group()

    def _operator(self) -> Operator:
        self._skip_blanks()
        found = _OPERATOR.match(self._text, self._at)
        if found is None or found.group() not in ("==", "!=", "~="):
            raise self._error('expected an operator ("==", "!=" or "~=")')
        self._at = found.end()
        return Operator(found.group())

    def _value(self, operator: Operator) -> str:
        self._skip_blanks()
        if (quoted := self._quoted('"/|' if operator is Operator.MATCHES else '"')) is not None:
            return quoted
        found = _VALUE.match(self._text, self._at)
        if found is None or found.group()[0] in "/|.=!~":
            raise self._error("expected a value, plain or in double quotes")
        self._at = found.end()
        return found.group()

    def _quoted(self, quotes: str) -> str | None:
        """Take a quoted string if one begins here; None if none does."""
        quote = self._text[self._at : self._at + 1]
        if not quote or quote not in quotes:
            return None
        found = _QUOTED[quote].match(self._text, self._at)
        if found is None:
            raise self._error("quoted literal not terminated")
        taken = self._unquote(found.group(1), quote)
        self._at = found.end()
        return taken

    def _unquote(self, body: str, quote: str) -> str:
        # Go's \x and octal escapes stand for bytes, which need not be UTF-8.
        taken = bytearray()
        for octal, byte, short, long, simple, plain in _ESCAPE.findall(body):
            if plain:
                taken += plain.encode()
            elif octal or byte:
                code = int(octal, 8) if octal else int(byte, 16)
                if code > 0xFF:
                    raise self._error("illegal escape sequence")
                taken.append(code)
            elif short or long:
                code = int(short or long, 16)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000:
                    raise self._error("illegal escape sequence")
                taken += chr(code).encode()
            elif simple == quote:
                taken += quote.encode()
            elif simple in _SIMPLE_ESCAPES:
                taken.append(_SIMPLE_ESCAPES[simple])
            else:
                raise self._error("illegal escape sequence")
        return taken.decode(errors="surrogateescape")

    def _skip_blanks(self) -> None:
        found = _BLANK.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _error(self, message: str) -> InvalidFilter:
        before, here, after = (
            self._text[: self._at],
            self._text[self._at : self._at + 1],
            self._text[self._at + 1 :],
        )
        where = f"{before} >|{here}|< {after}" if here else before
        return InvalidFilter(f"filters: parse error: [{where}]: {message}")
