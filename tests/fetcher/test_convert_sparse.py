"""Sparse files in each of GNU tar's forms become whole files, everything else of them kept."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.convert import Compressors, LayerFormat
from fetcher.convert.rewriting import Part, rewritten
from fetcher.errors import FormatError
from tests.fetcher.converting import Converter, formats, lazy, member, tar_of, unpacked
from tests.trees import difference

FORMS = {
    "old GNU": ["--format=gnu"],
    "PAX 0.0": ["--format=posix", "--sparse-version=0.0"],
    "PAX 0.1": ["--format=posix", "--sparse-version=0.1"],
    "PAX 1.0": ["--format=posix", "--sparse-version=1.0"],
}
NOISE = random.Random(3).randbytes(4096)


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Converter]:
    with Compressors(2) as compressors:
        yield Converter(tmp_path_factory.mktemp("convert"), compressors)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with holes: at each end, in the middle, nothing but one, very many, one with a long name."""
    root = tmp_path_factory.mktemp("sparse")
    shapes = {
        "begin": ([(1 << 20, NOISE)], (1 << 20) + 4096),
        "end": ([(0, NOISE)], 3_000_000),
        "middle": ([(0, NOISE), (1 << 20, NOISE)], (1 << 20) + 5000),
        "hole": ([], 2_000_000),
        "many": ([(number << 13, NOISE) for number in range(200)], (200 << 13) + 77),
        f"deep/{'n' * 200}": ([(65536, NOISE)], 200_001),
        "whole": ([(0, NOISE)], 4096),
    }
    for name, (pieces, size) in shapes.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            for offset, content in pieces:
                os.pwrite(file.fileno(), content, offset)
            file.truncate(size)
        os.chmod(path, 0o4711)
        os.utime(path, (1_500_000_000, 1_500_000_000.5))
    return root


def archive(files: Path, form: str) -> bytes:
    command = ["tar", "-c", "--sparse", "--owner=me:12", "--group=us:34", "-C", str(files), *FORMS[form], "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


@pytest.mark.parametrize("output", formats())
@pytest.mark.parametrize("form", FORMS)
def test_sparse_files(convert: Converter, files: Path, form: str, output: LayerFormat) -> None:
    tar = archive(files, form)
    assert len(tar) < 2_500_000, "not sparse: the test would test nothing"
    converted = convert(tar, format=output, chunk_size=300_000)
    assert difference(unpacked(converted.tar), unpacked(tar)) == []
    assert difference(lazy(converted), unpacked(tar)) == []
    assert lazy(converted)["many"].size == (200 << 13) + 77
    with tarfile.open(fileobj=io.BytesIO(converted.tar)) as read:
        entries = read.getmembers()
    assert not [entry.name for entry in entries if entry.issparse()]
    assert not [key for entry in entries for key in entry.pax_headers if "sparse" in key]
    owners = {entry.name: (entry.uname, entry.gname, entry.mode) for entry in entries}
    assert owners["./many"] == ("me", "us", 0o4711)


@pytest.mark.parametrize("form", FORMS)
def test_whoever_unpacks_with_tar_gets_the_same(
    convert: Converter, files: Path, form: str, tmp_path: Path
) -> None:
    converted = convert(archive(files, form))
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=converted.tar, check=True)
    ours = ["-x", "stargz.index.json", "-x", ".no.prefetch.landmark"]
    subprocess.run(["diff", "-r", *ours, str(files), str(tmp_path)], check=True)


def old_sparse(
    pairs: list[tuple[int, int]], real_size: int, content: bytes, *, extended: bytes = b""
) -> bytes:
    """An entry of the type 'S'; at most four pairs."""
    block = bytearray(tar_of(member("sparse", content), format=tarfile.GNU_FORMAT)[:512])
    block[156:157] = b"S"
    for number, (offset, size) in enumerate(pairs):
        block[386 + 24 * number : 410 + 24 * number] = b"%011o\0%011o\0" % (offset, size)
    block[482] = bool(extended)
    block[483:495] = b"%011o\0" % real_size
    return checked(block) + extended + content + bytes(-len(content) % 512)


def checked(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax_sparse(records: dict[str, str], content: bytes) -> bytes:
    info, _ = member("sparse", content)
    info.size = len(content)
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


def version(number: str) -> dict[str, str]:
    major, minor = number.split(".")
    return {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.name": "file"}


BROKEN = {
    "beyond the file": old_sparse([(0, 10)], 5, b"0123456789"),
    "out of order": old_sparse([(20, 5), (0, 5)], 40, b"0123456789"),
    "overlapping": old_sparse([(0, 6), (5, 4)], 40, b"0123456789"),
    "more bytes than the map has": old_sparse([(0, 5)], 40, b"0123456789"),
    "fewer bytes than the map has": old_sparse([(0, 20)], 40, b"0123456789"),
    "a map without an end": old_sparse([], 40, b"", extended=(bytes(504) + b"\1" + bytes(7)) * 3000),
    "a petabyte of zeros": pax_sparse(
        {**version("0.1"), "GNU.sparse.size": str(1 << 50), "GNU.sparse.map": ""}, b""
    ),
    "half a pair": pax_sparse({**version("0.1"), "GNU.sparse.size": "9", "GNU.sparse.map": "0,1,2"}, b"x"),
    "words": pax_sparse({**version("0.1"), "GNU.sparse.size": "9", "GNU.sparse.map": "0,one"}, b"x"),
    "no size": pax_sparse({**version("0.1"), "GNU.sparse.map": "0,1"}, b"x"),
    "a map that is cut off": pax_sparse({**version("1.0"), "GNU.sparse.realsize": "9"}, b"3\n0\n1\n"),
    "a map of many numbers": pax_sparse({**version("1.0"), "GNU.sparse.realsize": "9"}, b"999999999999\n"),
    "no map": pax_sparse({**version("1.0"), "GNU.sparse.realsize": "9"}, b"no map"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_maps(convert: Converter, case: str) -> None:
    with pytest.raises(FormatError, match=r"sparse.*(at byte 0 |, at byte \d+)"):
        convert(BROKEN[case] + bytes(1024))


def test_a_map_that_has_no_numbers(convert: Converter) -> None:
    tar = bytearray(old_sparse([(0, 5)], 40, b"01234"))
    tar[386:398] = b"0000000000x\0"
    with pytest.raises(FormatError, match="'sparse' at byte 0 "):
        convert(checked(tar[:512]) + tar[512:])


def test_a_size_that_octal_digits_cannot_say() -> None:
    """Of a file of 8 GiB the header alone: its zeros would take minutes."""
    block = old_sparse([(0, 5)], 40, b"01234")[:512]
    header = rewritten([Part(b"S", block, b"")], size=8**11, whole=True)
    with tarfile.open(fileobj=io.BytesIO(header), mode="r|") as archive:
        info = archive.next()
    assert info is not None
    assert (info.name, info.type, info.size) == ("sparse", tarfile.REGTYPE, 8**11)
