"""Whatever comes in whatever blocks: a file is here whole and verified, or not at all."""

from __future__ import annotations

import os
import tempfile
from itertools import cycle, pairwise, repeat
from pathlib import Path

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fetcher.errors import VerificationError
from fetcher.progress import Field
from tests.estargz import (
    build,
    file,
)
from tests.fetcher.streaming import StreamedLayer, contents, noise, numbered


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_never_shows_a_wrong_file(data: st.DataObject) -> None:
    entries = [*numbered(4, 700), file("text", b"text " * 300), file("zeros", bytes(3000)), file("one", b"1")]
    built = build(entries, chunk_size=500, min_chunk_size=data.draw(st.sampled_from([0, 900])))
    with tempfile.TemporaryDirectory() as directory:
        layer = StreamedLayer(Path(directory), built, blocks=lambda: repeat(300))
        for _ in range(data.draw(st.integers(1, 3))):
            layer.blob.corrupt(
                data.draw(st.integers(0, layer.toc_offset - 1)), flip=data.draw(st.integers(1, 255))
            )
        try:
            anyio.run(layer.run)
            complete = True
        except VerificationError:
            complete = False
        assert layer.open_files() == 0
        expected = contents(entries)
        assert all(expected[path] == content for path, content in layer.here().items())
        assert not complete or layer.here() == expected


_sizes = st.integers(0, 3000) | st.sampled_from([0, 1, 511, 512, 513, 1024])
_files = st.lists(st.tuples(st.sampled_from(["a", "b/c", "b/d", "e/f/g"]), _sizes), max_size=12)


class _Halted(Exception):
    pass


@settings(deadline=None, max_examples=80)
@given(
    files=_files,
    chunk_size=st.integers(100, 2000),
    min_chunk_size=st.sampled_from([0, 0, 700, 5000]),
    blocks=st.lists(st.integers(1, 2000), min_size=1, max_size=6),
    cuts=st.lists(st.floats(0, 1), max_size=3),
    halt=st.none() | st.floats(0, 1),
    here=st.sets(st.integers(0, 11)),
)
def test_any_layer_in_any_blocks_and_runs(
    files: list[tuple[str, int]],
    chunk_size: int,
    min_chunk_size: int,
    blocks: list[int],
    cuts: list[float],
    halt: float | None,
    here: set[int],
) -> None:
    entries = [
        file(f"{directory}{number}", noise(size // 2, number) + bytes(size - size // 2))
        for number, (directory, size) in enumerate(files)
    ]
    expected = contents(entries)

    def on_block(position: int) -> None:
        present = layer.here()
        assert all(expected[path] == content for path, content in present.items()), "a partial file is seen"
        if halt is not None and not halted and position >= halt * layer.toc_offset:
            halted.append(position)
            raise _Halted

    halted: list[int] = []
    with tempfile.TemporaryDirectory() as directory:
        layer = StreamedLayer(
            Path(directory),
            build(entries, chunk_size=chunk_size, min_chunk_size=min_chunk_size),
            blocks=lambda: cycle(blocks),
            on_block=on_block,
        )
        for number in here:
            path = entries[number].name if number < len(entries) else ""
            if path in expected:
                layer.plain.write(layer.tree.nodes[path], expected[path])
        inodes = {path: os.stat(layer.fs / path).st_ino for path in layer.here()}

        async def run_all() -> None:
            edges = [0, *sorted(int(cut * layer.toc_offset) for cut in cuts), layer.toc_offset]
            for start, end in pairwise(edges):
                try:
                    await layer.run(start, end)
                except _Halted:
                    await layer.run(start, end)

        anyio.run(run_all)
        assert layer.here() == expected
        assert {path: os.stat(layer.fs / path).st_ino for path in inodes} == inodes
        assert layer.progress[Field.FILES_DONE] == len(expected) - len(inodes)
        assert layer.open_files() == 0
