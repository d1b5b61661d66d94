"""The footers of zstd:chunked: where the table of contents is, or why there is none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FormatError, NotEstargz
from fetcher.footer import LONGEST_FOOTER, Footer, parse_footer
from tests.estargz import file
from tests.zstd_chunked import Variant, build_zstd, skippable, zstd_footer

# Byte by byte from the format's description, and not from a builder.
FOOTER = (
    bytes.fromhex(
        "502a4d1828000000"  # skippable frame of 40 bytes
        "0010000000000000"  # the TOC's zstd frame is at 0x1000
        "2002000000000000"  # and has 0x220 bytes,
        "ff03000000000000"  # 0x3ff uncompressed
        "0100000000000000"  # kind
    )
    + b"GnUlInUx"
)
LONG_FOOTER = (
    bytes.fromhex(
        "502a4d1840000000"
        "0010000000000000"
        "2002000000000000"
        "ff03000000000000"
        "0100000000000000"
        "2812000000000000"  # tar-split at 0x1228
        "0001000000000000"
        "0002000000000000"
    )
    + b"GNUlInUx"
)


def containers_footer(offset: int, size: int, kind: int = 1) -> bytes:
    return skippable(struct.pack("<7Q", offset, size, 0, kind, 0, 0, 0) + b"GNUlInUx")


def test_footer_as_it_is_described() -> None:
    assert len(FOOTER) == 48
    assert zstd_footer(0x1000, 0x220, 0x3FF) == FOOTER
    assert parse_footer(FOOTER, blob_size=0x1220 + 48) == Footer(0x0FF8, 48)


def test_what_lies_between_toc_and_footer_counts_to_the_footer() -> None:
    assert len(LONG_FOOTER) == LONGEST_FOOTER == 72
    assert parse_footer(LONG_FOOTER, blob_size=0x1328 + 72) == Footer(0x0FF8, 8 + 0x100 + 72)


@pytest.mark.parametrize("variant", Variant)
def test_footer_of_a_built_layer(variant: Variant) -> None:
    layer = build_zstd([file("a", b"content")], variant)
    footer = parse_footer(layer.blob[-LONGEST_FOOTER:], blob_size=len(layer.blob))
    offset, size, _, _ = map(int, layer.position.split(":"))
    assert footer.toc_offset == offset - 8
    assert len(layer.blob) - footer.size == offset + size


@settings(deadline=None)
@given(
    offset=st.integers(8, (1 << 63) - 1),
    size=st.integers(1, 1 << 40),
    more=st.integers(0, 1 << 40),
    long=st.booleans(),
    before=st.binary(max_size=80),
)
def test_any_place_within_the_blob_is_read_back(
    offset: int, size: int, more: int, long: bool, before: bytes
) -> None:
    footer = containers_footer(offset, size) if long else zstd_footer(offset, size, 0)
    parsed = parse_footer(before + footer, blob_size=offset + size + more + len(footer))
    assert parsed == Footer(offset - 8, more + len(footer))


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("offset", "size"),
    [(7, 10), (0, 10), (100, 0), (100, 901), (1000, 1), ((1 << 64) - 1, 1), (8, (1 << 64) - 1)],
)
def test_place_outside_the_layer(offset: int, size: int, long: bool) -> None:
    footer = containers_footer(offset, size) if long else zstd_footer(offset, size, 0)
    with pytest.raises(FormatError, match="outside the layer") as raised:
        parse_footer(footer, blob_size=1000 + len(footer))
    assert not isinstance(raised.value, NotEstargz)


def test_blob_said_to_be_smaller_than_its_footer() -> None:
    with pytest.raises(FormatError, match="outside the layer"):
        parse_footer(FOOTER, blob_size=3)


@pytest.mark.parametrize("kind", [0, 2, 1 << 63])
def test_table_of_contents_of_another_kind(kind: int) -> None:
    for footer in (zstd_footer(100, 100, 0, kind=kind), containers_footer(100, 100, kind)):
        with pytest.raises(NotEstargz, match="of kind"):
            parse_footer(footer, blob_size=1000)


@pytest.mark.parametrize("footer", [FOOTER, LONG_FOOTER])
@pytest.mark.parametrize("position", [0, 3, 4, 7, -1, -8])
def test_damage_to_the_frame_makes_it_an_ordinary_layer(footer: bytes, position: int) -> None:
    damaged = bytearray(footer)
    damaged[position] ^= 0x55
    with pytest.raises(NotEstargz):
        parse_footer(bytes(damaged), blob_size=10_000)


def test_magic_of_the_other_length() -> None:
    for footer, other in ((FOOTER, b"GNUlInUx"), (LONG_FOOTER, b"GnUlInUx")):
        with pytest.raises(NotEstargz):
            parse_footer(bytes(72) + footer[:-8] + other, blob_size=10_000)


@pytest.mark.parametrize("length", [8, 40, 47])
def test_tail_shorter_than_a_footer(length: int) -> None:
    with pytest.raises(NotEstargz):
        parse_footer(FOOTER[-length:], blob_size=length)


@settings(deadline=None)
@given(
    tail=st.binary(max_size=80),
    numbers=st.binary(max_size=64),
    magic=st.sampled_from([b"GnUlInUx", b"GNUlInUx"]),
    size=st.integers(0, 1 << 70),
)
def test_arbitrary_bytes_give_a_footer_or_a_format_error(
    tail: bytes, numbers: bytes, magic: bytes, size: int
) -> None:
    for footer in (tail + magic, tail + skippable(numbers[:32] + magic), tail + skippable(numbers + magic)):
        try:
            found = parse_footer(footer, blob_size=size)
        except FormatError:
            continue
        assert 0 <= found.toc_offset < size - found.size <= size
