"""Chunks of files out of zstd members, one by one, as an open or a read asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetcher.errors import FormatError, VerificationError
from mounter.partial import MemberPart, PartialFile, PieceWriter, holds_whole, members
from tests.estargz import Entry, file
from tests.fetcher.streaming import StreamedLayer, noise
from tests.zstd_chunked import Variant, build_zstd

HOLES = b"begin" + bytes(300_000) + noise(200_000) + bytes(5000)


def layer_of(directory: Path, entries: list[Entry], variant: Variant, chunk_size: int) -> StreamedLayer:
    return StreamedLayer(directory, build_zstd(entries, variant, chunk_size=chunk_size, level=1))


def take(layer: StreamedLayer, partial: PartialFile, part: MemberPart, *, feed: int | None = None) -> None:
    """What `mounter.ondemand` does with a member that has come; `feed`: in blocks of this size."""
    member = bytes(layer.blob.data[part.offset : part.end])
    if feed is None:
        partial.store(member, part.indexes)
        return
    writer = PieceWriter(partial, part.indexes)
    for position in range(0, len(member), feed):
        if not writer.done:
            writer.feed(member[position : position + feed])
    writer.finish()


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("chunk_size", [30_000, 1 << 20])
@pytest.mark.parametrize("feed", [None, 1000, 1 << 20])
def test_a_file_comes_chunk_by_chunk_in_any_order(
    tmp_path: Path, variant: Variant, chunk_size: int, feed: int | None
) -> None:
    layer = layer_of(tmp_path, [file("a", b"a"), file("holes", HOLES), file("z", b"z")], variant, chunk_size)
    node = layer.tree.nodes["holes"]
    partial = PartialFile(layer.plain, node, 0.0)
    parts = members(node, range(len(node.chunks)))
    assert (len(parts) > 1) == (variant is not Variant.STARGZ or chunk_size < len(HOLES))
    for part in reversed(parts):
        assert not partial.committed
        assert holds_whole(part, node)
        take(layer, partial, part, feed=feed)
        assert partial.has(part.indexes)
    partial.close()
    assert layer.here() == {"holes": HOLES}


def test_a_member_too_large_to_hold(tmp_path: Path) -> None:
    content = noise(9 << 20)
    layer = layer_of(tmp_path, [file("large", content), file("z", b"z")], Variant.STARGZ, 16 << 20)
    node = layer.tree.nodes["large"]
    [part] = members(node, [0])
    assert not holds_whole(part, node)
    partial = PartialFile(layer.plain, node, 0.0)
    take(layer, partial, part, feed=1 << 20)
    partial.close()
    assert layer.here() == {"large": content}


@pytest.mark.parametrize("feed", [None, 1000])
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("where", [0, 1000])
def test_damaged_chunk_is_never_marked(
    tmp_path: Path, variant: Variant, feed: int | None, where: int
) -> None:
    layer = layer_of(tmp_path, [file("a", noise(90_000)), file("z", b"z")], variant, 30_000)
    node = layer.tree.nodes["a"]
    first, second, third = members(node, range(3))
    layer.blob.corrupt(second.offset + where)
    partial = PartialFile(layer.plain, node, 0.0)
    take(layer, partial, first, feed=feed)
    with pytest.raises((FormatError, VerificationError)):
        take(layer, partial, second, feed=feed)
    take(layer, partial, third, feed=feed)
    assert (partial.has(first.indexes), partial.has(second.indexes), partial.has(third.indexes)) == (
        True,
        False,
        True,
    )
    assert layer.here() == {}
    layer.blob.corrupt(second.offset + where)
    take(layer, partial, second, feed=feed)
    partial.close()
    assert set(layer.here()) == {"a"}
