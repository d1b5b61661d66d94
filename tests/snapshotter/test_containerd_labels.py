from __future__ import annotations

import hashlib

import pytest

from snapshotter.containerd.labels import (
    LABEL_LIMIT,
    chain_ids,
    manifest_labels,
    may_be_lazy,
    snapshot_labels,
    source_labels,
)

TOC = "containerd.io/snapshot/stargz/toc.digest"


def digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def labels(layers: list[str], annotations: dict[str, str]) -> dict[str, str]:
    return snapshot_labels(
        chain_id=digest("chain"),
        reference="example.org/a:1",
        manifest_digest=digest("manifest"),
        layers=layers,
        annotations=annotations,
    )


def test_a_chain_id_covers_all_layers_below() -> None:
    a, b, c = digest("a"), digest("b"), digest("c")
    ab = digest(f"{a} {b}")
    assert chain_ids([a, b, c]) == [a, ab, digest(f"{ab} {c}")]
    assert chain_ids([]) == []


def test_a_manifest_keeps_config_and_each_layer() -> None:
    assert manifest_labels("c", ["x", "y"]) == {
        "containerd.io/gc.ref.content.config": "c",
        "containerd.io/gc.ref.content.l.0": "x",
        "containerd.io/gc.ref.content.l.1": "y",
    }


def test_a_snapshot_learns_its_layer_and_the_layers_above() -> None:
    made = labels([digest("2"), digest("3")], {TOC: digest("toc"), "org.example.other": "no"})
    assert made == {
        "containerd.io/snapshot.ref": digest("chain"),
        "containerd.io/snapshot/cri.image-ref": "example.org/a:1",
        "containerd.io/snapshot/cri.manifest-digest": digest("manifest"),
        "containerd.io/snapshot/cri.layer-digest": digest("2"),
        "containerd.io/snapshot/cri.image-layers": f"{digest('2')},{digest('3')}",
        TOC: digest("toc"),
    }


def test_an_author_cannot_name_another_layer_by_annotation() -> None:
    key = "containerd.io/snapshot/cri.layer-digest"
    assert labels([digest("true")], {key: digest("false")})[key] == digest("true")


def test_the_list_of_layers_is_cut_at_a_whole_digest_within_containerds_limit() -> None:
    layers = [digest(str(number)) for number in range(100)]
    key = "containerd.io/snapshot/cri.image-layers"
    value = labels(layers, {})[key]
    listed = value.split(",")
    assert listed == layers[: len(listed)]
    assert len(key) + len(value) <= LABEL_LIMIT < len(key) + len(value) + len(f",{layers[0]}")


def test_an_annotation_too_long_for_a_label_is_left_out() -> None:
    assert TOC not in labels([digest("1")], {TOC: "x" * LABEL_LIMIT})


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ({}, "a/b"),
        ({"containerd.io/distribution.source.example.org": "z,a/b"}, "a/b,z"),
        ({"containerd.io/distribution.source.example.com": "z"}, "a/b"),
    ],
)
def test_a_source_joins_those_already_known(existing: dict[str, str], expected: str) -> None:
    made = source_labels("example.org:5000", "a/b", existing)
    assert made == {"containerd.io/distribution.source.example.org": expected}


def test_a_source_that_does_not_fit_changes_nothing() -> None:
    assert source_labels("example.org", "x" * LABEL_LIMIT, {}) == {}


def test_only_snapshot_annotations_promise_a_lazy_layer() -> None:
    assert may_be_lazy({TOC: digest("toc")})
    assert not may_be_lazy({"io.containers.estargz.uncompressed-size": "7"})
