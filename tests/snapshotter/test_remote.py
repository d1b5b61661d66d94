"""Labels to the remote layer that they describe."""

from __future__ import annotations

import pytest

from fetcher.errors import InvalidReference
from snapshotter.remote import RemoteLayer, remote_layer

_LAYER = "sha256:" + "a" * 64
_TOC = "sha256:" + "b" * 64
_MANIFEST = "sha256:" + "c" * 64
_CRI = {
    "containerd.io/snapshot.ref": "sha256:" + "d" * 64,
    "containerd.io/snapshot/cri.image-ref": "registry.local:5000/team/app:1",
    "containerd.io/snapshot/cri.layer-digest": _LAYER,
    "containerd.io/snapshot/cri.manifest-digest": _MANIFEST,
    "containerd.io/snapshot/stargz/toc.digest": _TOC,
}


def test_cri_labels() -> None:
    assert remote_layer(_CRI) == RemoteLayer("registry.local:5000/team/app:1", _LAYER, _TOC, _MANIFEST)


def test_stargz_labels() -> None:
    labels = {
        "containerd.io/snapshot/remote/stargz.reference": "localhost:5000/app:1",
        "containerd.io/snapshot/remote/stargz.digest": _LAYER,
        "containerd.io/snapshot/stargz/toc.digest": _TOC,
    }
    assert remote_layer(labels) == RemoteLayer("localhost:5000/app:1", _LAYER, _TOC, None)


def test_without_toc_digest_none_is_promised() -> None:
    labels = {key: value for key, value in _CRI.items() if "toc.digest" not in key}
    found = remote_layer(labels)
    assert found is not None
    assert found.toc_digest is None


def test_references_are_normalised() -> None:
    found = remote_layer(_CRI | {"containerd.io/snapshot/cri.image-ref": "app"})
    assert found is not None
    assert found.reference == "docker.io/library/app:latest"


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"containerd.io/snapshot.ref": "sha256:" + "d" * 64},
        {"containerd.io/snapshot/cri.image-ref": "app"},
        {"containerd.io/snapshot/cri.layer-digest": _LAYER},
        {"containerd.io/snapshot/stargz/toc.digest": _TOC},
    ],
)
def test_labels_that_describe_no_layer(labels: dict[str, str]) -> None:
    assert remote_layer(labels) is None


@pytest.mark.parametrize(
    "change",
    [
        {"containerd.io/snapshot/cri.image-ref": "not a reference"},
        {"containerd.io/snapshot/cri.layer-digest": "sha256:short"},
        {"containerd.io/snapshot/cri.layer-digest": "../../etc"},
        {"containerd.io/snapshot/stargz/toc.digest": "md5:" + "b" * 64},
        {"containerd.io/snapshot/cri.manifest-digest": "latest"},
    ],
)
def test_labels_that_cannot_be_parsed(change: dict[str, str]) -> None:
    with pytest.raises(InvalidReference):
        remote_layer(_CRI | change)
