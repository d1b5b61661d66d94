"""Of which layers the mounter has the trees ready when a container starts."""

from __future__ import annotations

from pathlib import Path

from fetcher.progress import Field
from snapshotter.lazy import _likely_missed
from tests.snapshotter.cached import CachedNode


def test_incomplete_layers_of_an_image_without_an_order(tmp_path: Path) -> None:
    node = CachedNode(tmp_path)
    layers = [node.small(1, complete=False), node.small(2), node.small(3, complete=False)]
    assert _likely_missed(node.store, layers) == [layers[0], layers[2]]
    assert _likely_missed(node.store, []) == []


def test_none_of_an_image_with_an_order(tmp_path: Path) -> None:
    node = CachedNode(tmp_path)
    layers = [node.small(1, complete=False), node.small(2, complete=False)]
    node.store.progress(layers[1])[Field.PREFETCH_END] = 1
    assert _likely_missed(node.store, layers) == []
