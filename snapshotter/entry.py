"""Where `layergate` begins. A pull is done by a process that `layergate serve` forks, if serve runs.

The modules of a pull take half a second to load, which is a third of what its container's first output takes;
serve has them loaded. So this module imports next to nothing, as even json, typing and contextlib take 15 ms
where they have to come from the disk: it hands over command line, environment and standard files, passes
signals on, and ends as the other process does. Without a serve, or with one of another version, the command
runs here.

    ADDRESS.commands, SOCK_SEQPACKET     `snapshotter.commands` is the other end
      -> version, encoding of standard output, directory, number of arguments, arguments, and NAME=VALUE of
         the environment, with zero bytes between them; with descriptors 0, 1, 2
      <- "begun"                         else it did not come to anything
      -> number of a signal              any time
      <- exit status                     then the socket closes
"""

from __future__ import annotations

import os
import signal
import socket
import sys

from fetcher.version import VERSION
from snapshotter.defaults import DEFAULT_ADDRESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Final, NoReturn

BEGUN: Final = b"begun"
_HANDED_OVER: Final = ("pull",)
_PASSED_ON: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PACKET_LIMIT: Final = 64
_BEGIN_SECONDS: Final = 5.0
"""A serve that takes longer does not help."""


def main() -> NoReturn:
    """Entry point of `layergate`."""
    status = _hand_over(sys.argv[1:])
    if status is None:
        from snapshotter.cli import main as run_here

        run_here()
    sys.exit(status)


def commands_socket(address: str) -> str:
    """Where the serve on `address` takes commands."""
    return f"{address}.commands"


def _hand_over(arguments: list[str]) -> int | None:
    """The exit status of the command, run for us; None if nobody does."""
    if not arguments or arguments[0] not in _HANDED_OVER:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.settimeout(_BEGIN_SECONDS)
            connection.connect(commands_socket(_address(arguments)))
            socket.send_fds(connection, [_request(arguments)], [0, 1, 2])
            if connection.recv(_PACKET_LIMIT) != BEGUN:
                return None
        except OSError:
            return None
        connection.settimeout(None)
        return _wait(connection)


def _request(arguments: list[str]) -> bytes:
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    head = [VERSION, sys.stdout.encoding, os.getcwd(), str(len(arguments))]
    return os.fsencode("\0".join([*head, *arguments, *environment]))


def _address(arguments: list[str]) -> str:
    """The value of --address, as click will understand it."""
    found = DEFAULT_ADDRESS
    for number, word in enumerate(arguments):
        if word == "--address" and number + 1 < len(arguments):
            found = arguments[number + 1]
        elif word.startswith("--address="):
            found = word.partition("=")[2]
    return os.path.abspath(found)


def _wait(connection: socket.socket) -> int:
    passed_on: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        passed_on.append(number)
        try:
            connection.send(str(number).encode(), socket.MSG_NOSIGNAL)
        except OSError:  # it has just ended
            return

    for number in _PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, pass_on)
    try:
        answer = connection.recv(_PACKET_LIMIT)
    except ConnectionError:
        answer = b""
    if not answer and passed_on:
        return 128 + passed_on[0]
    if not answer:
        sys.stderr.write("layergate: the process that did this was killed: try again\n")
        return 1
    return int(answer)


if __name__ == "__main__":
    main()
