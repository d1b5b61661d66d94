"""The process that places what a worker receives: in the end all is here, whoever placed it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from fetcher.errors import FetchError, VerificationError
from fetcher.nodes import Node
from fetcher.placing import WHOLE_OUTPUT
from fetcher.plain import PlainLayer
from fetcher.progress import Field
from fetcher.tree import LayerTree
from snapshotter.worker_placer import ProcessPlacer, is_worth_two
from tests.estargz import Entry, build, file
from tests.fetcher.memory_blob import MemoryBlob
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered

_SMALL = 2000
"""Files that take a process so long that it looks for help."""


class _SignedLayer(PlainLayer):
    """Notes which process wrote a file whole: `pid path` a line."""

    def __init__(self, directory: str, tree: LayerTree) -> None:
        super().__init__(directory, tree)
        self._notes = os.open(f"{directory}.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, node: Node, data: bytes | memoryview) -> bool:
        is_new = super().write(node, data)
        os.write(self._notes, f"{os.getpid()} {node.path}\n".encode())
        return is_new

    def notes(self) -> list[tuple[int, str]]:
        """Process and path of each file that was written whole, in order."""
        lines = Path(f"{self.directory}.notes").read_text().splitlines()
        return [(int(line.split()[0]), line.split()[1]) for line in lines]


class _Streamed(StreamedLayer):
    def __init__(self, directory: Path, entries: list[Entry], *, chunk_size: int = 4 << 20) -> None:
        super().__init__(directory, build(entries, chunk_size=chunk_size))
        self.signed = self.plain = _SignedLayer(str(self.fs), self.tree)

    def writers(self) -> Counter[int]:
        """How many files each process wrote."""
        return Counter(process for process, _ in self.signed.notes())


@contextlib.contextmanager
def _placer(layer: _Streamed) -> Iterator[ProcessPlacer]:
    with contextlib.closing(ProcessPlacer("key", layer.plain)) as placer:
        yield placer


def _stream(layer: _Streamed, placer: ProcessPlacer, *, threads: int = 2) -> None:
    async def run() -> None:
        await layer.run(threads=threads, placer=placer)

    anyio.run(run)


def _offset(layer: _Streamed, number: int) -> int:
    return layer.offset(f"d{number % 3}/f{number}")


def test_both_processes_place_and_each_file_once(tmp_path: Path) -> None:
    entries = numbered(_SMALL)
    layer = _Streamed(tmp_path, entries)
    with _placer(layer) as placer:
        _stream(layer, placer)
    assert layer.here() == contents(entries)
    writers = layer.writers()
    assert len(writers) == 2
    assert writers.pop(os.getpid()) + sum(writers.values()) == _SMALL
    assert layer.progress[Field.FILES_DONE] == _SMALL
    assert layer.progress[Field.BYTES_DONE] == layer.toc_offset - _offset(layer, 0)
    assert layer.progress[Field.POSITION] == layer.toc_offset
    assert len(layer.blob.requests) == 1


def test_who_waits_for_the_link_places_by_itself(tmp_path: Path) -> None:
    entries = numbered(300)
    layer = _Streamed(tmp_path, entries)
    layer.blob = MemoryBlob(bytes(layer.blob.data), on_block=lambda position: time.sleep(0.03))
    with _placer(layer) as placer:
        _stream(layer, placer)
    assert layer.here() == contents(entries)
    assert layer.writers()[os.getpid()] > 200


def test_neighbours_are_written_at_about_the_same_time(tmp_path: Path) -> None:
    layer = _Streamed(tmp_path, numbered(_SMALL))
    with _placer(layer) as placer:
        _stream(layer, placer)
    places = [int(path.partition("f")[2]) for _, path in layer.signed.notes()]
    apart = [abs(number - place) for place, number in enumerate(places)]
    # Three batches of at most 80 files are under way; the halves of the layer would lie 1,000 apart, 500 in
    # the mean. While the other process is not let run, this one goes on by itself: some lie further apart.
    assert sum(apart) / len(apart) < 240
    assert max(apart) < 700


def test_large_and_small_files_with_everything_between(tmp_path: Path) -> None:
    entries = [
        *numbered(1000), file("large", noise(3 << 20)), file("empty"),
        *(file(f"m/{n}", noise(700_000, n)) for n in range(20)),
        file("zeros", bytes(2 << 20)), *(file(f"e/{n}", noise(3000, n)) for n in range(1000)),
        file("last", noise(1 << 20)),
    ]  # fmt: skip
    layer = _Streamed(tmp_path, entries, chunk_size=1 << 20)
    with _placer(layer) as placer:
        _stream(layer, placer)
    assert layer.here() == contents(entries)
    assert layer.progress[Field.FILES_DONE] == len(contents(entries))


def test_what_is_here_already_is_left_alone(tmp_path: Path) -> None:
    entries = numbered(_SMALL)
    layer = _Streamed(tmp_path, entries)
    here = [node for number, node in enumerate(layer.tree.regular_files()) if number % 5 == 0]
    for node in here:
        layer.plain.write(node, contents(entries)[node.path])
    kept = {node.path: os.stat(layer.fs / node.path).st_ino for node in here}
    with _placer(layer) as placer:
        _stream(layer, placer)
    assert layer.here() == contents(entries)
    assert kept == {path: os.stat(layer.fs / path).st_ino for path in kept}
    assert layer.progress[Field.FILES_DONE] == _SMALL - len(here)


@pytest.mark.parametrize("after", [0, 1, 1000])
def test_without_the_process_its_worker_places_all(tmp_path: Path, after: int) -> None:
    entries = numbered(_SMALL)
    layer = _Streamed(tmp_path, entries)
    with _placer(layer) as placer:

        def kill(position: int) -> None:
            if position >= _offset(layer, after):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(placer.pid, signal.SIGKILL)

        layer.blob = MemoryBlob(bytes(layer.blob.data), on_block=kill)
        _stream(layer, placer)
    assert layer.here() == contents(entries)


def test_wrong_bytes_are_named_and_never_here(tmp_path: Path) -> None:
    layer = _Streamed(tmp_path, numbered(_SMALL))
    wrong = range(3, _SMALL, 7)  # whoever gets them
    for number in wrong:
        layer.blob.corrupt(_offset(layer, number) + 40)
    with _placer(layer) as placer, pytest.raises(VerificationError, match=r"'d\d/f\d+':"):
        _stream(layer, placer)
    assert not {f"d{number % 3}/f{number}" for number in wrong} & set(layer.here())


def test_wrong_bytes_that_the_process_got_are_named_by_its_worker(tmp_path: Path) -> None:
    layer = _Streamed(tmp_path, numbered(3))
    layer.blob.corrupt(_offset(layer, 1) + 40)
    with _placer(layer) as placer:
        first = layer.tree.members[0]
        batch = placer.batch(first)
        assert batch is not None
        for member in layer.tree.members:
            assert placer.batch(member) is batch
            batch.add(member, bytes(layer.blob.data[member.offset : member.end]))
        with pytest.raises(VerificationError, match="'d1/f1'"):
            batch.result()
    assert set(layer.here()) == {"d0/f0"}
    assert layer.writers().keys() == {placer.pid, os.getpid()}


def test_a_stream_that_broke_off_can_be_begun_again_with_it(tmp_path: Path) -> None:
    entries = numbered(_SMALL)
    layer = _Streamed(tmp_path, entries)
    whole = layer.blob
    with _placer(layer) as placer:
        for stops in (600, 1200):
            layer.blob = MemoryBlob(bytes(whole.data), ends_at=_offset(layer, stops) + 2000)
            with pytest.raises(FetchError):
                _stream(layer, placer)
        layer.blob = whole
        _stream(layer, placer)
    assert layer.here() == contents(entries)
    assert len({path for _, path in layer.signed.notes()}) == _SMALL


def test_members_that_would_inflate_beyond_bounds_are_not_for_it(tmp_path: Path) -> None:
    layer = _Streamed(tmp_path, [file("zeros", bytes(WHOLE_OUTPUT + 1)), file("a", b"a")], chunk_size=1 << 30)
    with _placer(layer) as placer:
        zeros, small = layer.tree.members
        assert zeros.end - zeros.offset < 512 << 10
        assert placer.batch(zeros) is None
        assert placer.batch(small) is not None


def test_two_processes_are_for_layers_that_cost_enough(tmp_path: Path) -> None:
    for count, worth in ((100, False), (5000, True)):
        directory = tmp_path / str(count)
        directory.mkdir()
        layer = _Streamed(directory, numbered(count, 10))
        assert is_worth_two(layer.tree.members, math.inf) == worth


def test_over_a_slow_link_one_process_keeps_up(tmp_path: Path) -> None:
    members = _Streamed(tmp_path, numbered(5000, 10)).tree.members
    work = 0.31  # seconds; 5,000 files of 60 us and their bytes
    size = sum(member.end - member.offset for member in members)
    assert is_worth_two(members, size / work)
    assert not is_worth_two(members, size / (3 * work))
