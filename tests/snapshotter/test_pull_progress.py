from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from snapshotter.cli.progress import LiveProgress, PlainProgress, megabytes, short
from snapshotter.containerd.progress import LayerState, PullProgress
from snapshotter.containerd.types import Descriptor

LAYERS = [Descriptor("layer", f"sha256:{digit * 64}", size) for digit, size in (("a", 1_500_000), ("b", 20))]


def follow(progress: PullProgress) -> None:
    progress.layers(LAYERS)
    progress.state(0, LayerState.LAZY)
    progress.state(1, LayerState.DOWNLOADING)
    progress.received(1, 7)


def test_plain_progress_is_one_line_a_change() -> None:
    out = io.StringIO()
    follow(PlainProgress(out))
    assert out.getvalue().splitlines() == [
        "layer 1/2 aaaaaaaaaaaa (1.5 MB): lazy",
        "layer 2/2 bbbbbbbbbbbb (0.0 MB): downloading",
    ]


def test_live_progress_has_a_task_a_layer() -> None:
    with Progress(TextColumn("x"), console=Console(file=io.StringIO())) as shown:
        live = LiveProgress(shown)
        follow(live)
        assert [(task.description, task.fields["state"], task.completed) for task in shown.tasks] == [
            ("aaaaaaaaaaaa", "lazy", 0),
            ("bbbbbbbbbbbb", "downloading", 7),
        ]
        live.state(1, LayerState.UNPACKING)
        assert shown.tasks[1].completed == 20


@pytest.mark.parametrize(("count", "text"), [(0, "0.0 MB"), (99_999, "0.1 MB"), (2_500_000_000, "2500.0 MB")])
def test_sizes_are_in_one_unit(count: int, text: str) -> None:
    assert megabytes(count) == text


def test_a_digest_is_cut_as_docker_cuts_it() -> None:
    assert short("sha256:0123456789abcdef") == "0123456789ab"
