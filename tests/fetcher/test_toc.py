"""The table of contents: out of its member, verified, decoded."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fetcher.errors import InvalidToc, VerificationError
from fetcher.footer import FOOTER_SIZE, parse_footer
from fetcher.toc import TOC_LIMIT, TOC_NAME, parse_toc, toc_digest, unpack_toc, verify_toc
from tests.estargz import build, dir, file, symlink


def tar_entry(content: bytes, *, name: str = TOC_NAME, form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def with_size(content: bytes, size: bytes) -> bytes:
    """A tar entry whose header says `size`, with the right checksum."""
    entry = bytearray(tar_entry(content))
    entry[124:136] = size.ljust(12, b"\0")
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry[:512])
    return bytes(entry)


def entry_of(**fields: object) -> bytes:
    return json.dumps({"version": 1, "entries": [{"name": "a", "type": "reg", **fields}]}).encode()


# unpack


def test_toc_of_a_built_layer_is_found_and_verified() -> None:
    layer = build([dir("etc/"), file("etc/passwd", b"root"), symlink("etc/p", "passwd")])
    footer = parse_footer(layer.blob[-FOOTER_SIZE:], blob_size=len(layer.blob))
    unpacked = unpack_toc(layer.blob[footer.toc_offset : -footer.size])
    assert unpacked == layer.toc_json
    verify_toc(unpacked, layer.toc_digest)
    assert [entry.name for entry in parse_toc(unpacked).entries] == ["etc/", "etc/passwd", "etc/p"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_forms(form: int) -> None:
    assert unpack_toc(gzip.compress(tar_entry(b"{}", form=form))) == b"{}"


def test_content_need_not_fill_its_block() -> None:
    entry = tar_entry(b"{}")[: 512 + 2]
    assert unpack_toc(gzip.compress(entry)) == b"{}"


def test_empty_content() -> None:
    assert unpack_toc(gzip.compress(tar_entry(b""))) == b""


@pytest.mark.parametrize("name", ["stargz.index.jsonx", "./stargz.index.json", "etc/stargz.index.json", "a"])
def test_another_name(name: str) -> None:
    with pytest.raises(InvalidToc, match=r"not 'stargz\.index\.json'"):
        unpack_toc(gzip.compress(tar_entry(b"{}", name=name)))


@pytest.mark.parametrize("junk", [b"this is no gzip", bytes(2000), zlib.compress(b"{}")])
def test_not_a_gzip_member(junk: bytes) -> None:
    with pytest.raises(InvalidToc, match="not a gzip member"):
        unpack_toc(junk)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(511), bytes(512), bytes(4096), b"x" * 4096])
def test_not_a_tar_entry(content: bytes) -> None:
    with pytest.raises(InvalidToc, match="not a tar entry"):
        unpack_toc(gzip.compress(content))


def test_nothing_at_all() -> None:
    with pytest.raises(InvalidToc, match="not a tar entry"):
        unpack_toc(b"")


def test_cut_off() -> None:
    content = json.dumps({"version": 1, "entries": []}).encode() * 100
    member = gzip.compress(tar_entry(content))
    for length in (len(member) - 40, len(member) // 2):
        with pytest.raises(InvalidToc):
            unpack_toc(member[:length])
    with pytest.raises(InvalidToc, match="cut off"):
        unpack_toc(gzip.compress(tar_entry(content)[:600]))


@pytest.mark.parametrize("size", [TOC_LIMIT + 1, 1 << 40, 1 << 70])
def test_header_that_says_too_much(size: int) -> None:
    text = b"\x80" + size.to_bytes(11, "big")
    with pytest.raises(InvalidToc, match="are allowed"):
        unpack_toc(gzip.compress(with_size(b"{}", text)))


def test_header_with_a_negative_size() -> None:
    with pytest.raises(InvalidToc, match="are allowed"):
        unpack_toc(gzip.compress(with_size(b"{}", b"\xff" * 11 + b"\xf0")))


def test_header_with_a_size_that_is_no_number() -> None:
    with pytest.raises(InvalidToc, match="not a tar entry"):
        unpack_toc(gzip.compress(with_size(b"{}", b"12x4")))


def test_bomb_is_inflated_no_further_than_the_limit() -> None:
    compress = zlib.compressobj(1, wbits=31)
    bomb = bytearray(compress.compress(with_size(b"{}", b"\x80" + (1 << 33).to_bytes(11, "big"))))
    zeros = bytes(16 << 20)
    for _ in range(4 * (TOC_LIMIT >> 24)):
        bomb += compress.compress(zeros)
    bomb += compress.flush()
    assert len(bomb) < 8 << 20
    tracemalloc.start()
    try:
        with pytest.raises(InvalidToc, match="are allowed"):
            unpack_toc(bytes(bomb))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * TOC_LIMIT


@settings(deadline=None)
@given(junk=st.binary(max_size=1200))
def test_arbitrary_entries_give_bytes_or_invalid_toc(junk: bytes) -> None:
    for member in (junk, gzip.compress(junk), gzip.compress(junk.ljust(512, b"\0"))):
        try:
            unpack_toc(member)
        except InvalidToc:
            continue
        raise AssertionError("nobody can guess a tar header's checksum and the TOC's name")


@settings(deadline=None)
@given(position=st.integers(0, 511), byte=st.integers(0, 255))
def test_header_with_a_changed_byte(position: int, byte: int) -> None:
    entry = bytearray(tar_entry(b"{}"))
    entry[position] = byte
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry[:512])
    try:
        content = unpack_toc(gzip.compress(bytes(entry)))
    except InvalidToc:
        return
    assert content in tar_entry(b"{}")


# verify


def test_digest_is_that_of_the_json() -> None:
    assert toc_digest(b"{}") == "sha256:" + hashlib.sha256(b"{}").hexdigest()
    verify_toc(b"{}", toc_digest(b"{}"))


@pytest.mark.parametrize(
    "promised", ["", "sha256:", "sha256:" + "0" * 64, toc_digest(b"{}").upper(), "md5:1"]
)
def test_another_digest(promised: str) -> None:
    with pytest.raises(VerificationError, match="the image promises"):
        verify_toc(b"{}", promised)


# parse


def test_every_field() -> None:
    [entry] = parse_toc(
        json.dumps(
            {
                "version": 1,
                "entries": [
                    {
                        "name": "bin/su", "type": "reg", "size": 9, "modtime": "2024-05-01T10:00:00Z",
                        "linkName": "x", "mode": 35309, "uid": 1, "gid": 2, "userName": "root",
                        "groupName": "root", "devMajor": 3, "devMinor": 4,
                        "xattrs": {"security.capability": "AQAAAgA="}, "digest": "sha256:1", "offset": 5,
                        "innerOffset": 6, "chunkOffset": 7, "chunkSize": 8, "chunkDigest": "sha256:2",
                        "NumLink": 1,
                    }
                ],
            }
        ).encode()
    ).entries  # fmt: skip
    assert (entry.name, entry.type, entry.size, entry.modtime) == ("bin/su", "reg", 9, "2024-05-01T10:00:00Z")
    assert (entry.link_name, entry.mode, entry.uid, entry.gid) == ("x", 35309, 1, 2)
    assert (entry.dev_major, entry.dev_minor) == (3, 4)
    assert entry.xattrs == {"security.capability": b"\x01\x00\x00\x02\x00"}
    assert (entry.digest, entry.offset, entry.inner_offset) == ("sha256:1", 5, 6)
    assert (entry.chunk_offset, entry.chunk_size, entry.chunk_digest) == (7, 8, "sha256:2")


def test_xattr_that_is_no_text() -> None:
    [entry] = parse_toc(entry_of(xattrs={"user.raw": "/wD+gA=="})).entries
    assert entry.xattrs == {"user.raw": b"\xff\x00\xfe\x80"}


@pytest.mark.parametrize(
    "text", ['{"version":1}', '{"version":1,"entries":[]}', '{"version":1,"entries":null}']
)
def test_no_entries(text: str) -> None:
    assert parse_toc(text.encode()).entries == []


def test_numbers_of_any_size_are_left_to_the_tree() -> None:
    [entry] = parse_toc(entry_of(size=-(1 << 80), offset=1 << 80)).entries
    assert (entry.size, entry.offset) == (-(1 << 80), 1 << 80)


@pytest.mark.parametrize("version", [0, 2, -1, 1 << 70])
def test_another_version(version: int) -> None:
    with pytest.raises(InvalidToc, match="version"):
        parse_toc(json.dumps({"version": version, "entries": []}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"{", b'{"entries":[]}', b'{"version":"1"}', b'{"version":1.5}', b"\xff\xfe",
        b'{"version":1,"entries":{}}', b'{"version":1,"entries":[null]}', b'{"version":1,"entries":[{}]}',
        b'{"version":1,"entries":[{"name":"a"}]}', b'{"version":1,"entries":[{"type":"reg"}]}',
        b'{"version":1,"entries":[{"name":1,"type":"reg"}]}',
        b'{"version":1,"entries":[{"name":"\xff","type":"reg"}]}',
        b'{"version":1,"entries":[{"name":"\\ud800","type":"reg"}]}',
        b'{"version":1}{"version":1}',
        b'{"version":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"version":1,"entries":' + b'[{"name":' * 50_000,
        entry_of(size="9"), entry_of(size=1.5), entry_of(mode=None), entry_of(xattrs={"user.a": "!"}),
        entry_of(xattrs={"user.a": 1}), entry_of(xattrs={"user.a": None}), entry_of(xattrs=["user.a"]),
    ],
)  # fmt: skip
def test_other_shapes(text: bytes) -> None:
    with pytest.raises(InvalidToc, match="cannot be decoded"):
        parse_toc(text)


@settings(deadline=None)
@given(text=st.binary(max_size=200))
def test_arbitrary_bytes_give_a_toc_or_invalid_toc(text: bytes) -> None:
    for json_text in (text, b'{"version":1,"entries":[{"name":"a","type":"reg",' + text + b"}]}"):
        try:
            parse_toc(json_text)
        except InvalidToc:
            continue


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@settings(deadline=None)
@given(
    document=st.dictionaries(
        st.sampled_from(["version", "entries", "x"]),
        _scalars
        | st.lists(
            st.dictionaries(st.sampled_from(["name", "type", "size", "xattrs", "offset"]), _scalars),
            max_size=3,
        ),
    )
)
def test_arbitrary_json_gives_a_toc_or_invalid_toc(document: dict[str, object]) -> None:
    try:
        toc = parse_toc(json.dumps(document).encode())
    except InvalidToc:
        return
    assert toc.version == 1


def test_a_name_that_is_not_utf_8_is_its_bytes() -> None:
    text = r'{"version":1,"entries":[{"name":"caf\udce9","type":"symlink","linkName":"\udcff/x"}]}'
    (entry,) = parse_toc(text.encode()).entries
    assert os.fsencode(entry.name) == b"caf\xe9"
    assert os.fsencode(entry.link_name) == b"\xff/x"


def test_two_spellings_of_a_name_are_one() -> None:
    entry = r'{"name":"\udcc3\udca9\udcff","type":"reg","xattrs":{"user.\udcc3\udca9":"QQ=="}}'
    text = f'{{"version":1,"entries":[{entry}]}}'
    (parsed,) = parse_toc(text.encode()).entries
    assert parsed.name == "é\udcff"
    assert parsed.xattrs == {"user.é": b"A"}


@pytest.mark.parametrize("name", [r"\ud800x", r"\udc41", r"\udcff\udc00"])
def test_half_a_character_is_no_name(name: str) -> None:
    with pytest.raises(InvalidToc, match="cannot be decoded"):
        parse_toc(f'{{"version":1,"entries":[{{"name":"{name}","type":"reg"}}]}}'.encode())
