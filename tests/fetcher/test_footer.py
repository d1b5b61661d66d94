"""The footer: where the table of contents starts, or why there is none."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import FormatError, NotEstargz
from fetcher.footer import FOOTER_SIZE, LEGACY_FOOTER_SIZE, Footer, parse_footer
from tests.estargz import build, file, footer_bytes, legacy_footer_bytes, plain

# Byte by byte from the specification, and not from a builder.
FOOTER = (
    bytes.fromhex("1f8b08040000000000ff")  # gzip header with FEXTRA
    + bytes.fromhex("1a00")  # XLEN 26
    + b"SG\x16\x00"  # subfield, LEN 22
    + b"0000000000001000STARGZ"
    + bytes.fromhex("010000ffff")  # empty stored block
    + bytes(8)  # CRC32, ISIZE
)
EXTERNAL_FOOTER = (
    bytes.fromhex("1f8b08040000000000ff1500")
    + b"SG\x11\x00STARGZEXTERNALTOC"
    + bytes.fromhex("010000ffff")
    + bytes(8)
)


def test_footer_as_in_the_specification() -> None:
    assert len(FOOTER) == FOOTER_SIZE
    assert parse_footer(FOOTER, blob_size=10_000) == Footer(0x1000, 51)


def test_footer_is_a_gzip_member_of_nothing() -> None:
    assert gzip.decompress(FOOTER) == b""
    assert footer_bytes(0x1000) == FOOTER


def test_legacy_footer() -> None:
    footer = legacy_footer_bytes(0xABC)
    assert len(footer) == LEGACY_FOOTER_SIZE
    assert parse_footer(footer, blob_size=10_000) == Footer(0xABC, 47)


def test_hexadecimal_in_capitals() -> None:
    footer = FOOTER.replace(b"0000000000001000", b"0000000000000ABC")
    assert parse_footer(footer, blob_size=10_000).toc_offset == 0xABC


@settings(deadline=None)
@given(offset=st.integers(0, (1 << 64) - 1), legacy=st.booleans(), before=st.binary(max_size=80))
def test_any_offset_within_the_blob_is_read_back(offset: int, legacy: bool, before: bytes) -> None:
    footer = legacy_footer_bytes(offset) if legacy else footer_bytes(offset)
    parsed = parse_footer(before + footer, blob_size=offset + 1 + len(footer))
    assert parsed == Footer(offset, len(footer))


@pytest.mark.parametrize("legacy", [False, True])
def test_footer_of_a_built_layer(legacy: bool) -> None:
    layer = build([file("a", b"content")], legacy_footer=legacy)
    footer = parse_footer(layer.blob[-FOOTER_SIZE:], blob_size=len(layer.blob))
    assert layer.toc_json in gzip.decompress(layer.blob[footer.toc_offset : -footer.size])


def test_offset_must_lie_before_the_footer() -> None:
    assert parse_footer(footer_bytes(99), blob_size=100 + 51).toc_offset == 99
    with pytest.raises(FormatError, match="outside the layer"):
        parse_footer(footer_bytes(100), blob_size=100 + 51)


def test_offset_beyond_a_signed_64_bit_number() -> None:
    footer = FOOTER.replace(b"0000000000001000", b"ffffffffffffffff")
    with pytest.raises(FormatError, match="outside the layer"):
        parse_footer(footer, blob_size=1 << 40)


@pytest.mark.parametrize(
    "text",
    [b"000000000000100g", b"0x00000000001000", b"-000000000001000", b"+000000000001000", b" 000000000001000",
     b"00000000_0001000", b"0000000000001000"[:-1] + b"\n", b"\xd9\xa0" * 8, bytes(16)],
)  # fmt: skip
def test_offset_that_is_not_hexadecimal(text: bytes) -> None:
    with pytest.raises(FormatError, match="not hexadecimal"):
        parse_footer(FOOTER.replace(b"0000000000001000", text), blob_size=1 << 40)


@pytest.mark.parametrize(
    ("start", "bytes_there"),
    [
        (0, b"\x1f\x8c"),  # no gzip
        (3, b"\x00"),  # no Extra field
        (10, b"\x19\x00"),  # an Extra field that is too short
        (10, b"\x00\x1a"),  # big endian
        (12, b"GS"),
        (14, b"\x15\x00"),
        (32, b"STARGS"),
    ],
)
def test_damage_makes_it_an_ordinary_layer(start: int, bytes_there: bytes) -> None:
    damaged = bytearray(FOOTER)
    damaged[start : start + len(bytes_there)] = bytes_there
    with pytest.raises(NotEstargz):
        parse_footer(bytes(damaged), blob_size=10_000)


def test_legacy_magic_does_not_count_in_a_footer_of_the_other_length() -> None:
    footer = bytearray(legacy_footer_bytes(5))
    footer[10:12] = b"\x1a\x00"
    with pytest.raises(NotEstargz):
        parse_footer(bytes(footer), blob_size=10_000)


@pytest.mark.parametrize("length", [0, 1, 46, 50])
def test_tail_shorter_than_a_footer(length: int) -> None:
    with pytest.raises(NotEstargz):
        parse_footer(FOOTER[51 - length :], blob_size=length)


def test_blob_that_is_its_footer_alone() -> None:
    with pytest.raises(FormatError, match="outside the layer"):
        parse_footer(footer_bytes(0), blob_size=51)


def test_blob_said_to_be_smaller_than_its_footer() -> None:
    with pytest.raises(FormatError, match="outside the layer"):
        parse_footer(footer_bytes(0), blob_size=3)


def test_ordinary_layer() -> None:
    layer = plain([file("a", b"content")])
    with pytest.raises(NotEstargz, match="no eStargz footer"):
        parse_footer(layer.blob[-FOOTER_SIZE:], blob_size=len(layer.blob))


def test_empty_layer_is_named() -> None:
    with pytest.raises(NotEstargz, match="empty"):
        parse_footer(b"", blob_size=0)


def test_external_toc_is_named() -> None:
    assert len(EXTERNAL_FOOTER) == 46
    with pytest.raises(NotEstargz, match="external TOC"):
        parse_footer(bytes(5) + EXTERNAL_FOOTER, blob_size=10_000)


@settings(deadline=None)
@given(tail=st.binary(max_size=120), size=st.integers(0, 1 << 70))
def test_arbitrary_bytes_give_a_footer_or_a_format_error(tail: bytes, size: int) -> None:
    try:
        footer = parse_footer(tail, blob_size=size)
    except FormatError:
        return
    assert 0 <= footer.toc_offset < size


@settings(deadline=None)
@given(
    legacy=st.booleans(),
    position=st.integers(0, 50),
    byte=st.integers(0, 255),
    size=st.integers(0, 1 << 65),
)
def test_a_changed_byte_gives_a_footer_or_a_format_error(
    legacy: bool, position: int, byte: int, size: int
) -> None:
    damaged = bytearray(legacy_footer_bytes(77) if legacy else footer_bytes(77))
    damaged[position % len(damaged)] = byte
    try:
        footer = parse_footer(bytes(damaged), blob_size=size)
    except FormatError:
        return
    assert 0 <= footer.toc_offset < size - footer.size
