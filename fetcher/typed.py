"""Making typed values out of plain ones.

msgspec works out a class's fields when the class is first made a decoder of, or converted to. Another
thread that needs the class meanwhile finds it half done, and the process ends with a segmentation fault
(msgspec 0.22). So decoders and converters are made where modules are loaded, one after the other:
no function calls `msgspec.json.decode` with a type, or `msgspec.convert`.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Converter(Generic[T]):
    """Makes values of `kind` out of dicts, lists, strings and numbers, as JSON and TOML have them."""

    def __init__(self, kind: type[T]) -> None:
        self._kind = kind
        msgspec.json.Decoder(kind)

    def convert(self, value: object) -> T:
        """The value as a `kind`. Raises msgspec.ValidationError."""
        return msgspec.convert(value, self._kind)
