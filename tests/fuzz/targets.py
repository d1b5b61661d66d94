"""What is fuzzed: each target takes any bytes, and what it raises is a defect.

A target lets pass what its readers say that they raise, and holds what they give against what they promise.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from fetcher.auth import parse_challenges
from fetcher.errors import FetchError
from fetcher.footer import parse_footer
from fetcher.inflate import MemberInflater, inflate
from fetcher.manifest import parse_config_platform, parse_diff_ids, parse_index, parse_manifest
from fetcher.ranges import parse_content_range, parse_length, parse_unsatisfied_range
from fetcher.record import format_record, parse_record
from fetcher.reference import parse_reference
from fetcher.retries import parse_retry_after
from fetcher.toc import parse_toc, unpack_toc
from fetcher.tree import build_tree
from mounter.control import decode_request
from snapshotter.config import load_config
from snapshotter.errors import ConfigError, InvalidFilter
from snapshotter.filters import parse_filters
from snapshotter.remote import remote_layer
from tests.estargz import Layer, build, chardev, dir, file, hardlink, landmark, symlink, whiteout
from tests.fetcher.test_tree_soundness import check_soundness

_DIGEST: Final = "sha256:" + "0" * 64
_LIMIT: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """`seeds` are inputs of the kind that it is meant for."""

    read: Callable[[bytes], None]
    seeds: Sequence[bytes]


def _footer(data: bytes) -> None:
    size = int.from_bytes(data[:5], "little")
    with suppress(FetchError):
        footer = parse_footer(data[5:], blob_size=size)
        assert 0 <= footer.toc_offset <= size - footer.size


def _toc(data: bytes) -> None:
    with suppress(FetchError):
        check_soundness(build_tree(parse_toc(data), end=1 << 20))


def _toc_member(data: bytes) -> None:
    with suppress(FetchError):
        unpack_toc(data)


def _inflate(data: bytes) -> None:
    with suppress(FetchError):
        assert len(inflate(data, _LIMIT)) <= _LIMIT
    with suppress(FetchError):
        inflater = MemberInflater(_LIMIT)
        half = len(data) // 2
        assert sum(map(len, (*inflater.feed(data[:half]), *inflater.feed(data[half:])))) <= _LIMIT


def _reference(data: bytes) -> None:
    text = _text(data)
    with suppress(FetchError):
        reference = parse_reference(text)
        assert parse_reference(str(reference)) == reference


def _headers(data: bytes) -> None:
    text = _text(data)
    found = parse_content_range(text)
    assert found is None or 0 <= found.start < found.end
    for number in (parse_length(text), parse_unsatisfied_range(text), parse_retry_after(text)):
        assert number is None or number >= 0
    parse_challenges([text])


def _documents(data: bytes) -> None:
    for parse in (parse_manifest, parse_index, parse_diff_ids, parse_config_platform):
        with suppress(FetchError):
            parse(data)


def _labels(data: bytes) -> None:
    # A key and a value a line.
    pairs = [line.partition("=") for line in _utf8(data).splitlines()]
    with suppress(FetchError):
        remote_layer({key: value for key, _, value in pairs})


def _filters(data: bytes) -> None:
    with suppress(InvalidFilter):
        parse_filters(_utf8(data).splitlines())


def _config(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as opened:
        opened.write(data)
        opened.flush()
        with suppress(ConfigError):
            load_config(opened.name)


def _record(data: bytes) -> None:
    with suppress(FetchError):
        record = parse_record(data, name="it")
        assert parse_record(format_record(record), name="it again") == record


def _control(data: bytes) -> None:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        decode_request(data)


def _text(data: bytes) -> str:
    """As a command line may have it."""
    return data.decode("utf-8", "surrogateescape")


def _utf8(data: bytes) -> str:
    """As gRPC may have it."""
    return data.decode("utf-8", "replace")


def _layer() -> Layer:
    return build(
        [
            dir("usr/"),
            file("usr/a", b"a" * 2500, mode=0o4755, uid=3, xattrs={"security.capability": b"\x01\xff"}),
            symlink("bin", "usr/a"),
            landmark(),
            hardlink("usr/b", "usr/a"),
            chardev("null", 1, 3),
            whiteout("old/gone"),
        ],
        chunk_size=1000,
    )


_SOME: Final = _layer()
_MANIFEST: Final = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _DIGEST, "size": 2},
    "layers": [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": _DIGEST,
            "size": 5,
            "annotations": {"containerd.io/snapshot/stargz/toc.digest": _DIGEST},
        }
    ],
}
_INDEX: Final = {
    "schemaVersion": 2,
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": _DIGEST,
            "size": 5,
            "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
        }
    ],
}
_IMAGE: Final = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [_DIGEST]}}
_LABELS: Final = f"""\
containerd.io/snapshot/cri.image-ref=example.com/app:1
containerd.io/snapshot/cri.layer-digest={_DIGEST}
containerd.io/snapshot/cri.manifest-digest={_DIGEST}
containerd.io/snapshot/stargz/toc.digest={_DIGEST}
"""
_CONFIG: Final = """\
[stream]
bytes_per_second = 0
[cache]
max_size = "10GB"
keep_unused = "24h"
[registry."example.com"]
plain_http = true
"""
_RECORD: Final = b'{"version":1}\n{"path":"usr/a","ranges":[[0,5]]}\n'

TARGETS: Final = {
    "footer": Target(_footer, [len(_SOME.blob).to_bytes(5, "little") + _SOME.blob[-51:]]),
    "toc": Target(_toc, [_SOME.toc_json]),
    "toc-member": Target(_toc_member, [_SOME.blob[int(_SOME.blob[-35:-19], 16) : -51]]),
    "inflate": Target(
        _inflate, [zlib.compress(b"abc" * 99, wbits=31), bytes.fromhex("28b52ffd0001000099e9d851")]
    ),
    "reference": Target(_reference, [b"example.com:5000/a/b:tag", f"[::1]:80/a@{_DIGEST}".encode()]),
    "headers": Target(
        _headers, [b"bytes 0-9/10", b"bytes */10", b"120", b'Bearer realm="https://a/b",scope="c:d"']
    ),
    "documents": Target(_documents, [json.dumps(one).encode() for one in (_MANIFEST, _INDEX, _IMAGE)]),
    "labels": Target(_labels, [_LABELS.encode()]),
    "filters": Target(_filters, [b'name==a,labels."x/y"~=/^b/\nparent!=c']),
    "config": Target(_config, [_CONFIG.encode()]),
    "record": Target(_record, [_RECORD]),
    "control": Target(_control, [b'{"type":"retire"}']),
}
