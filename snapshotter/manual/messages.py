"""What a keeper and the command that started it say to each other: JSON lines over a pair of sockets.

    keeper -> command       Mounted, Progress, Notice, Complete, Failed
    command -> keeper       KEEP: the mount may outlive the command; the keeper answers by closing its end

The command's end closed without KEEP, because it was interrupted or killed, means that the mount is not
wanted. Complete and Failed are the last words; then the keeper's end closes.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

KEEP: Final = b"keep\n"


class Mounted(msgspec.Struct, frozen=True, tag="mounted"):
    """The mount is up; `complete` of its `layers` are here whole."""

    layers: int
    complete: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far the layers are: compressed bytes, regular files with content, bytes a second."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    rate: int


class Notice(msgspec.Struct, frozen=True, tag="notice"):
    """Something that people should know; nothing failed."""

    text: str


class Complete(msgspec.Struct, frozen=True, tag="complete"):
    """The mount is native, and needs nobody any more."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """There is no mount; `code` is the exit code for the reason."""

    message: str
    code: int


Message = Mounted | Progress | Notice | Complete | Failed

_messages: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as its line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Raises msgspec.DecodeError."""
    return _messages.decode(line)


class Reporter(Protocol):
    """The command, as its keeper sees it."""

    @property
    def kept(self) -> bool:
        """Whether it left word to keep the mount, and is gone."""
        ...

    def tell(self, message: Message) -> None:
        """Say something; whether anybody hears it does not matter."""
        ...

    async def abandoned(self) -> None:
        """Return when the command went away and left no word to keep the mount."""
        ...
