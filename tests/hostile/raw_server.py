"""A server that says to each request whatever it was told to say, be it HTTP or not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress


class RawServer:
    """Answers the first request of a connection with `words`; `sent` counts the bytes it got rid of."""

    def __init__(self) -> None:
        self.words: Iterable[bytes] = ()
        self.sent = 0
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until `close`."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with closing(connection), suppress(OSError):
                    self.requests.append(connection.recv(1 << 16))
                    for word in self.words:
                        connection.sendall(word)
                        self.sent += len(word)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def raw_server() -> Iterator[RawServer]:
    """A running server, for the time of the block."""
    server = RawServer()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join()


def without_end(beginning: bytes, block: bytes, *, limit: int = 1 << 30) -> Iterator[bytes]:
    """`beginning`, and then `block` again and again, up to a number of bytes that nobody should take."""
    yield beginning
    for _ in range(limit // len(block)):
        yield block


def redirect(location: str) -> list[bytes]:
    """A redirect to `location`."""
    head = "HTTP/1.1 307 Temporary Redirect\r\nContent-Length: 0\r\nConnection: close\r\nLocation: "
    return [head.encode() + location.encode("latin-1") + b"\r\n\r\n"]
