"""ROOT/mounter.log: structured lines, bounded in size; standard output and error go there as well."""

from __future__ import annotations

import os
import sys


class LogFile:
    """A text sink that begins anew at `limit` bytes; what was there stays as `<path>.1`."""

    def __init__(self, path: str, limit: int) -> None:
        self.limit = limit
        self._path = path
        self._fd = -1
        self._size = 0
        self._open()

    def write(self, text: str) -> int:
        """Append; a disk that is full loses lines and nothing else."""
        data = text.encode(errors="backslashreplace")
        if self._size + len(data) > self.limit:
            self._rotate()
        try:
            self._size += os.write(self._fd, data)
        except OSError:
            return 0
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def _rotate(self) -> None:
        try:
            os.replace(self._path, f"{self._path}.1")
            self._open()
        except OSError:
            os.ftruncate(self._fd, 0)
            self._size = 0

    def _open(self) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size
        # Whatever libfuse or a dying interpreter has to say belongs there, too.
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(fd, 1)
        os.dup2(fd, 2)


def last_line(path: str) -> str:
    """The last line of a log file; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""
