"""LATE: hard links by which the gate hands a file over to overlayfs.

    ROOT/late/<layer>/fs/<path>  ->  the inode of ROOT/layers/<layer>/fs/<primary path>

A link has to stand from before the gate's ENOENT until overlayfs has looked it up, some microseconds
later. Then it is removed, so that the plain file's link count is what the layer says: overlayfs keeps
the inode, not the name. Only one process removes links, the holder of the mounter's lock. What else it
finds there (a killed predecessor's, a retired one's) it takes over as if it had just made it.

Thread-safe; every method blocks for a few file system calls.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress


class Late:
    """The directory ROOT/late. `hold_seconds` is how long a link stands."""

    def __init__(self, root: str, hold_seconds: float) -> None:
        self.hold_seconds = hold_seconds
        self._directory = os.path.join(root, "late")
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}
        self._found_due: set[str] = set()
        self._retired = False
        os.makedirs(self._directory, mode=0o700, exist_ok=True)

    def __len__(self) -> int:
        return len(self._due)

    def hand_over(self, layer: str, path: str, plain: str) -> bool:
        """Link the plain file `plain` into LATE as `path` of the layer; True if the link stands.

        False where it cannot: the plain file is gone, or has as many links as its file system takes.
        Raises OSError for anything else.
        """
        late = f"{self._directory}/{layer}/fs/{path}"
        with self._lock:
            try:
                self._link(plain, late)
            except FileExistsError:
                if self._retired:
                    return False  # another process removes it, now perhaps
                if not _same_file(plain, late):
                    self._replace(plain, late)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EMLINK, errno.EXDEV):
                    return False
                raise
            if not self._retired:
                self._due[late] = time.monotonic() + self.hold_seconds
                self._found_due.discard(late)
        return True

    def adopt(self) -> int:
        """Take over the links that are there; how many were found that nobody here knew."""
        found = 0
        with self._lock:
            for path in _files_below(self._directory):
                if path not in self._due:
                    self._due[path] = time.monotonic() + self.hold_seconds
                    found += 1
        return found

    def sweep(self) -> None:
        """Remove the links that have stood long enough, and the directories that are empty then.

        One sweep finds a link due and a later one removes it: after a standstill of the whole process,
        the answer that a link stands for may not have gone out yet.
        """
        now = time.monotonic()
        for path in [path for path, due in list(self._due.items()) if due <= now]:
            with self._lock:
                if self._due.get(path, now + 1) > now:
                    continue
                if path not in self._found_due:
                    self._found_due.add(path)
                    continue
                del self._due[path]
                self._found_due.discard(path)
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._prune(os.path.dirname(path))

    def retire(self) -> None:
        """Remove nothing any more: from now on that is another process's right."""
        with self._lock:
            self._retired = True
            self._due.clear()
            self._found_due.clear()

    def _link(self, plain: str, late: str) -> None:
        try:
            os.link(plain, late, follow_symlinks=False)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(late), mode=0o700, exist_ok=True)
            os.link(plain, late, follow_symlinks=False)

    def _replace(self, plain: str, late: str) -> None:
        """Put the plain file in the place of another one, left from an earlier life of the layer."""
        fresh = f"{late}.{os.getpid()}"
        os.link(plain, fresh, follow_symlinks=False)
        os.rename(fresh, late)

    def _prune(self, directory: str) -> None:
        with suppress(OSError):  # ENOTEMPTY ends it, as it should
            while directory != self._directory:
                os.rmdir(directory)
                directory = os.path.dirname(directory)


def _same_file(left: str, right: str) -> bool:
    try:
        return os.path.samestat(os.lstat(left), os.lstat(right))
    except FileNotFoundError:
        return False


def _files_below(directory: str) -> Iterator[str]:
    for parent, _, names in os.walk(directory):
        for name in names:
            yield f"{parent}/{name}"
