"""Odd tars of every form, converted: bytewise the same entries, and the same tree lazily as unpacked."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator
from unittest.mock import ANY

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fetcher.convert import Compressors, LayerFormat
from tests.fetcher.converting import (
    OURS,
    SOURCES,
    Archived,
    Converter,
    Impossible,
    archived,
    clean,
    formats,
    hardlink,
    lazy,
    member,
    symlink,
    tar_of,
    unpacked,
)
from tests.trees import difference

TAR_FORMATS = {"USTAR": tarfile.USTAR_FORMAT, "PAX": tarfile.PAX_FORMAT, "GNU": tarfile.GNU_FORMAT}
NOISE = random.Random(5).randbytes(200_000)
CHUNK = 1 << 16


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    with Compressors(2) as compressors:
        yield Converter(tmp_path_factory.mktemp("convert"), compressors)


def odd_tar(prefix: str, form: int) -> bytes:
    """One of everything that the form can say."""
    p = prefix
    long = [f"{'a' * 60}/{'b' * 59}", f"{'a' * 75}/{'b' * 74}", f"{'a' * 155}/{'b' * 99}"]
    entries = [
        member(f"{p}usr/", mode=0o751, uid=3, gid=4, uname="someone", gname="some group"),
        member(f"{p}usr/bin/tool", b"#!/bin/sh\n", mode=0o4755, uid=1000, uname="user"),
        member(f"{p}usr/bin/group", b"g", mode=0o2711),
        member(f"{p}tmp/", mode=0o1777),
        member(f"{p}empty"),
        member(f"{p}chunked", NOISE),
        member(f"{p}one chunk", NOISE[:CHUNK]),
        member(f"{p}one block", NOISE[:512]),
        member(f"{p}missing/parents/of/this", b"x"),
        symlink(f"{p}link", "usr/bin/tool"),
        symlink(f"{p}absolute", "/etc/passwd"),
        symlink(f"{p}dangling", "../../nowhere"),
        hardlink(f"{p}hard 1", f"{p}chunked"),
        hardlink(f"{p}hard 2", f"{p}hard 1"),
        hardlink(f"{p}hard 3", f"{p}hard 2"),
        member(f"{p}null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member(f"{p}disk", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660),
        member(f"{p}fifo", type=tarfile.FIFOTYPE, mode=0o600),
        member(f"{p}usr/", mode=0o755, uid=7),
        member(f"{p}twice", b"first"),
        member(f"{p}.wh.hidden"),
        member(f"{p}tmp/.wh..wh..opq"),
        member(f"{p}twice", b"second, and longer"),
        member(f"{p}.prefetch.landmark", b"\x0f"),
        member(f"{p}.no.prefetch.landmark", b"\x0f"),
        member(f"{p}usr/.prefetch.landmark", b"not a landmark"),
        member(f"{p}stargz.index.json", b"{}"),
        member(f"{p}ünïcödé ☃", b"snow"),
        *(member(p + name, name.encode()) for name in long[: 2 if form == tarfile.USTAR_FORMAT and p else 3]),
        member(f"{p}old", b"1970", mtime=0),
    ]
    if form != tarfile.USTAR_FORMAT:
        entries += [
            member(f"{p}{'n' * 255}", b"n"),
            symlink(f"{p}far", "t" * 300),
            member(f"{p}rich", b"r", uid=3_000_000_000, gid=2_500_000),
            member(f"{p}ancient", b"a", mtime=-86_400),
        ]
    if form == tarfile.PAX_FORMAT:
        entries += [
            member(f"{p}exact", b"e", mtime=1_600_000_000.75),
            member(f"{p}before", b"b", mtime=-1.25),
            member(
                f"{p}attributes",
                b"a",
                xattrs={"user.text": b"value", "trusted.bytes": bytes(range(256)), "user.a=b": b"\n"},
            ),
            member(f"{p}attributes of a directory/", xattrs={"user.empty": b"", "trusted.x": b"\xff"}),
        ]
    return tar_of(*entries, format=form)


def kept(tar: bytes) -> list[Archived]:
    """The entries that should be in the output: the last of each name, none of ours."""
    entries = archived(tar)
    last = {clean(entry.name): entry for entry in entries}
    return [entry for entry in entries if last[clean(entry.name)] is entry and clean(entry.name) not in OURS]


@pytest.mark.parametrize("form", formats())
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("tar_format", TAR_FORMATS)
@pytest.mark.parametrize("prefix", ["", "./", "/", "../"])
def test_odd_tars(convert: Converter, prefix: str, tar_format: str, source: str, form: LayerFormat) -> None:
    tar = odd_tar(prefix, TAR_FORMATS[tar_format])
    converted = convert(SOURCES[source](tar), format=form, chunk_size=CHUNK)
    entries = archived(converted.tar)
    assert entries.pop(0).name == ".no.prefetch.landmark"
    if form is LayerFormat.ESTARGZ:
        assert entries.pop() == Archived("stargz.index.json", ANY, converted.toc_json)
    assert entries == kept(tar)
    assert difference(unpacked(converted.tar), unpacked(tar)) == []
    assert difference(lazy(converted), unpacked(tar)) == []


@pytest.mark.parametrize("form", formats())
@pytest.mark.parametrize("min_chunk_size", [0, 1, 5000, 1 << 20])
@pytest.mark.parametrize("chunk_size", [1, 511, 4096, 1 << 20])
def test_sizes_of_chunks_and_members(
    convert: Converter, chunk_size: int, min_chunk_size: int, form: LayerFormat
) -> None:
    names = ["a", "b/c", "d", "e"]
    tar = tar_of(*(member(name, NOISE[: 700 * number]) for number, name in enumerate(names)))
    converted = convert(tar, format=form, chunk_size=chunk_size, min_chunk_size=min_chunk_size)
    assert difference(lazy(converted), unpacked(tar)) == []
    places = [(entry.offset, entry.inner_offset) for entry in converted.toc.entries if entry.chunk_digest]
    assert places == sorted(set(places))
    shared = len(places) - len({offset for offset, _ in places})
    assert shared if min_chunk_size > 1 else not shared


_PARTS = st.lists(st.sampled_from(["a", "b", "c", "..", "."]), min_size=1, max_size=4).map("/".join)
_CONTENT = st.binary(max_size=40) | st.integers(500, 1500).map(bytes)
_ENTRIES = st.lists(
    st.one_of(
        st.builds(member, _PARTS, _CONTENT, mode=st.integers(0, 0o7777), mtime=st.integers(0, 2**33)),
        st.builds(lambda path, mode: member(path + "/", mode=mode), _PARTS, st.integers(0, 0o7777)),
        st.builds(lambda path: member(path, type=tarfile.FIFOTYPE), _PARTS),
        st.builds(hardlink, _PARTS, _PARTS),
        st.builds(symlink, _PARTS, _PARTS),
    ),
    max_size=12,
)


@given(
    entries=_ENTRIES,
    form=st.sampled_from(formats()),
    min_chunk_size=st.sampled_from([0, 1000]),
    prioritized=st.lists(_PARTS, max_size=3),
)
@settings(max_examples=300)
def test_any_tar_that_unpacks_looks_the_same_lazily(
    convert: Converter,
    entries: list[tuple[tarfile.TarInfo, bytes]],
    form: LayerFormat,
    min_chunk_size: int,
    prioritized: list[str],
) -> None:
    tar = tar_of(*entries)
    try:
        tree = unpacked(tar)
    except Impossible:
        reject()
    converted = convert(
        tar, format=form, chunk_size=600, min_chunk_size=min_chunk_size, prioritized=tuple(prioritized)
    )
    assert difference(unpacked(converted.tar), tree, without=[]) == []
    assert difference(lazy(converted), tree) == []
