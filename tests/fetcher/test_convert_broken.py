"""Sources that are broken, hostile or no layer at all: a line that says what and where, and nothing left."""

from __future__ import annotations

import errno
import gzip
import os
import random
import signal
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from fetcher.convert import Compressors, LayerFormat, LayerOptions, convert_layer
from fetcher.errors import FetchError, FormatError, SourceNotFound, StoreError
from tests.fetcher.converting import Converter, archived, lazy, member, tar_of, unpacked
from tests.trees import difference

NOISE = random.Random(7).randbytes(300_000)
TAR = tar_of(member("first", b"1" * 600), member("dir/second", NOISE), member("third", b"3" * 600))
SKIPPABLE = b"\x5f\x2a\x4d\x18\x04\x00\x00\x00abcd"


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    with Compressors(1) as compressors:
        yield Converter(tmp_path_factory.mktemp("convert"), compressors)


def with_header(tar: bytes, offset: int, place: int, value: bytes) -> bytes:
    """The tar with a field of the header at `offset` replaced, and a checksum that fits."""
    block = bytearray(tar[offset : offset + 512])
    block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return tar[:offset] + block + tar[offset + 512 :]


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with any content, in front of an entry."""
    info = tarfile.TarInfo("extended")
    info.type = kind
    info.size = len(records)
    block = info.tobuf(tarfile.USTAR_FORMAT)
    return block + records + bytes(-len(records) % 512) + tar_of(member("entry", b"e"))


SECOND = 512 + 1024
"""Where the second entry's header is."""

BROKEN = {
    "content cut off": (TAR[: SECOND + 1000], r"'dir/second': of 300000 bytes at byte 2048 only 488"),
    "header cut off": (TAR[: SECOND + 100], r"in a header.*100 bytes.*at byte 1536, behind 'first'"),
    "checksum": (TAR[:SECOND] + b"x" + TAR[SECOND + 1 :], r"header at byte 1536 is damaged: its checksum"),
    "first checksum": (b"x" + TAR[1:], r"header at byte 0 is damaged: its checksum"),
    "size": (with_header(TAR, SECOND, 124, b"0000000009x\0"), r"byte 1536 is damaged: its size is"),
    "negative size": (with_header(TAR, SECOND, 124, b"\xff" * 12), r"byte 1536 has the size -1"),
    "enormous size": (with_header(TAR, SECOND, 124, b"\x80" + b"\xff" * 11), r"byte 1536 is damaged"),
    "type": (with_header(TAR, SECOND, 156, b"V"), r"'dir/second' at byte 1536 .* type b'V'"),
    "zeros between entries": (TAR[:SECOND] + bytes(512) + TAR[SECOND:], r"block of zeros .* at byte 1536"),
    "PAX without a length": (extended(b"path=x\n"), r"PAX header at byte 512 is damaged at its byte 0"),
    "PAX with a wrong length": (extended(b"10 path=x\n9 uid=1\n"), r"PAX header at byte 512"),
    "PAX too long": (extended(b"99 path=x\n"), r"PAX header at byte 512"),
    "PAX with an enormous length": (extended(b"9" * 400 + b" a=b\n"), r"PAX header at byte 512"),
    "PAX with a zero byte": (extended(b"12 path=a\0b\n"), r"at byte 512 has a zero byte in its path"),
    "PAX time": (extended(b"14 mtime=soon\n"), r"PAX header .* time b'soon'"),
    "PAX size": (extended(b"11 size=-1\n"), r"PAX header .* size -1"),
    "PAX uid": (extended(b"9 uid=0x\n"), r"PAX header .* uid b'0x'"),
    "damaged global header": (extended(b"nothing", b"g"), r"PAX header at byte 512"),
    "an extended header at the end": (extended(b"11 path=ab\n")[:1024], r"ends behind an extended header"),
    "a huge PAX header": (extended(b"a" * (2 << 20)), r"extended header at byte 0 .* has 2097152 bytes"),
    "many PAX headers": (extended(b"11 path=ab\n" * 90_000)[:990_720] * 6, r"headers at byte 0 .* more than"),
    "an empty file": (b"", r"the tar is empty"),
    "compressed nothing": (gzip.compress(b""), r"the tar is empty"),
    "text": (b"no tar at all" * 100, r"no tar archive, but data of an unknown kind"),
    "JSON": (b'{"schemaVersion": 2}'.ljust(600), r"no tar archive, but JSON"),
    "bzip2": (b"BZh91AY&SY".ljust(600, b"\1"), r"no tar archive, but bzip2"),
    "gzip of text": (gzip.compress(b"no tar at all" * 100), r"no tar archive"),
    "gzip cut off": (gzip.compress(TAR)[:-20], r"gzip data break off, behind byte \d+ of the tar"),
    "gzip with a wrong checksum": (gzip.compress(TAR)[:-8] + b"12345678", r"gzip data are damaged"),
    "gzip with damaged data": (
        gzip.compress(b"a" * 5000)[:12] + b"\xff" * 20,
        r"gzip data (are damaged|break off)",
    ),
    "gzip with a half member behind": (gzip.compress(TAR) + b"\x1f\x8b\x08", r"gzip data break off"),
    "gzip with rubbish behind": (gzip.compress(TAR) + b"rubbish", r"gzip data"),
    "zstd cut off": (zstandard.compress(TAR)[:-20], r"zstd data break off in the frame .* at byte 0"),
    "zstd cut off in a header": (zstandard.compress(TAR)[:5], r"zstd data break off at byte"),
    "zstd with rubbish behind": (zstandard.compress(TAR) + b"rubbish", r"no frame begins at byte \d+"),
    "zstd damaged": (
        zstandard.compress(b"text " * 1000)[:14] + b"\xff" * 8,
        r"zstd data",
    ),
    "zstd with a wrong checksum": (
        zstandard.ZstdCompressor(write_checksum=True).compress(TAR)[:-4] + b"1234",
        r"zstd data are damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_sources(convert: Converter, case: str) -> None:
    source, message = BROKEN[case]
    target = convert.directory / "target"
    target.unlink(missing_ok=True)
    with pytest.raises(FormatError, match=message) as caught:
        convert(source)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(convert.directory)) == ["scratch", "source"]
    assert os.listdir(convert.directory / "scratch") == []


SOUND = {
    "no end of archive": TAR[: SECOND + 512 + 300_032 + 512 + 600],
    "one block of zeros": TAR[: SECOND + 512 + 300_032] + bytes(512),
    "bytes behind the end": TAR + b"whatever" * 1000,
    "signed checksum": None,
    "a V7 header": with_header(tar_of(member("old", b"o")), 0, 257, bytes(255)),
    "several gzip members": gzip.compress(TAR[:5000]) + gzip.compress(TAR[5000:]),
    "gzip with zeros behind": gzip.compress(TAR) + bytes(512),
    "several zstd frames": SKIPPABLE
    + zstandard.compress(TAR[:5000])
    + SKIPPABLE
    + zstandard.compress(TAR[5000:]),
    "zstd of another kind": zstandard.ZstdCompressor(
        write_checksum=True, write_content_size=False
    ).compress(TAR),
    "zstd blocks of equal bytes": zstandard.compress(tar_of(member("zeros", bytes(1 << 20)))),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_what_unpackers_take(convert: Converter, case: str) -> None:
    source = SOUND[case]
    expected = TAR
    if source is None:
        block = bytearray(tar_of(member("caf\xe9", b"x")))
        block[148:156] = b" " * 8
        signed = sum(byte - 256 if byte > 127 else byte for byte in block[:512])
        block[148:156] = b"%06o\0 " % signed
        source = expected = bytes(block)
    elif case == "a V7 header":
        expected = source
    elif "equal bytes" in case:
        expected = tar_of(member("zeros", bytes(1 << 20)))
    elif case == "one block of zeros":
        expected = tar_of(member("first", b"1" * 600), member("dir/second", NOISE))
    converted = convert(source)
    assert difference(unpacked(converted.tar), unpacked(expected)) == []
    assert difference(lazy(converted), unpacked(expected)) == []


def test_names_in_the_prefix_field_of_a_gnu_header(convert: Converter) -> None:
    """Go before 1.8 put the beginning of a long name where GNU tar has times; such layers are still about."""
    gnu = tar_of(member("name", b"x"), format=tarfile.GNU_FORMAT)
    times = with_header(gnu, 0, 345, b"15000000000\x0015000000000\0")
    prefixed = with_header(gnu, 0, 345, b"some/directory\0")
    assert [entry.name for entry in convert(times).toc.entries][1:] == ["name"]
    assert [entry.name for entry in convert(prefixed).toc.entries][1:] == ["some/directory/name"]


def test_an_empty_value_leaves_the_field_alone(convert: Converter) -> None:
    tar = extended(b"8 path=\n13 uname=me\n"[:8] + b"12 uname=me\n")
    converted = convert(tar)
    assert converted.toc.entries[1].name == "entry"
    assert archived(converted.tar)[1].content == b"e"


def test_a_source_that_is_not_there(convert: Converter) -> None:
    with pytest.raises(SourceNotFound, match="/nowhere/layer"):
        convert_layer(
            "/nowhere/layer",
            str(convert.directory / "target"),
            LayerOptions(),
            compressors=convert.compressors,
            scratch=str(convert.directory),
        )


def test_a_target_that_cannot_be_written(convert: Converter, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(TAR)
    with pytest.raises(StoreError, match="no such place") as caught:
        convert_layer(
            str(source),
            str(tmp_path / "no such place" / "target"),
            LayerOptions(),
            compressors=convert.compressors,
            scratch=str(tmp_path),
        )
    assert caught.value.errno == errno.ENOENT
    assert os.listdir(tmp_path) == ["source"]


class Interruption(Exception):
    """What a caller who gives up raises."""


@pytest.mark.parametrize("form", list(LayerFormat))
def test_a_caller_who_gives_up_leaves_nothing(convert: Converter, tmp_path: Path, form: LayerFormat) -> None:
    source = tmp_path / "source"
    source.write_bytes(gzip.compress(tar_of(*(member(str(number), NOISE) for number in range(40)))))
    target = tmp_path / "target"
    target.write_bytes(b"of an earlier time")

    def give_up(_count: int) -> None:
        raise Interruption

    with pytest.raises(Interruption):
        convert_layer(
            str(source),
            str(target),
            LayerOptions(format=form),
            compressors=convert.compressors,
            scratch=str(tmp_path),
            progress=give_up,
        )
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert target.read_bytes() == b"of an earlier time"
    # And the processes are there for the next layer.
    assert lazy(convert(TAR))["first"].size == 600


def test_a_compressing_process_that_is_killed(tmp_path: Path) -> None:
    with Compressors(1) as compressors:
        worker = compressors.submit(os.getpid).result()
        convert = Converter(tmp_path, compressors)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(FetchError, match="a compressing process was killed"):
            _convert_until_it_fails(convert)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def _convert_until_it_fails(convert: Converter) -> None:
    """The pool needs a moment to see that its process is gone."""
    for _ in range(1000):
        convert(TAR)
        time.sleep(0.01)
