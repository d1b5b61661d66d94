"""Tars read without unpacking: offsets, links, and whatever somebody might put into one to do harm."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from fetcher.errors import FormatError, SourceNotFound, StoreError
from fetcher.images import tar_index
from fetcher.images.tar_index import MemberKind, TarIndex, tar_members
from fetcher.images.tar_reading import TarReader
from tests.archives import Member, directory_member, file_member, link_member, write_tar

pytestmark = pytest.mark.anyio


class Stream:
    """A tar that comes in blocks of one size."""

    def __init__(self, data: bytes, block: int) -> None:
        self._file = io.BytesIO(data)
        self._block = block

    def read(self, size: int) -> bytes:
        return self._file.read(min(size, self._block))

    def skip(self, size: int) -> None:
        while size and (data := self.read(size)):
            size -= len(data)


def read_all(data: bytes, *, block: int = 1 << 20) -> dict[str, bytes]:
    reader = TarReader(Stream(data, block), "it")
    return {entry.name: b"".join(reader.content(entry)) if entry.isreg() else b"" for entry in reader}


def tar(members: Sequence[Member], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


FILES = [file_member("empty"), file_member("exact", bytes(1024)), file_member("odd/" + "n" * 140, b"x" * 700)]


@pytest.mark.parametrize("block", [1, 511, 512, 1 << 20])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_entry_comes_whole_however_the_tar_comes(block: int, format: int) -> None:
    assert read_all(tar(FILES, format=format), block=block) == {info.name: data for info, data in FILES}


def test_a_tar_may_be_empty_and_may_end_without_its_trailer() -> None:
    assert read_all(bytes(10240)) == {}
    assert read_all(tar([file_member("a", b"1")])[:1024]) == {"a": b"1"}


def test_what_is_cut_off_is_an_error() -> None:
    whole = tar([file_member("a", b"1" * 600), file_member("b", b"2" * 600)])
    for end in (100, 512 + 300, 512 + 1024 + 100, 3 * 512 + 512 + 599):
        with pytest.raises(FormatError, match="it is a broken tar"):
            read_all(whole[:end])


def test_a_damaged_header_is_an_error_and_no_end() -> None:
    data = bytearray(tar([file_member("a"), file_member("b")]))
    data[512] ^= 1
    with pytest.raises(FormatError, match="no header at byte 512"):
        read_all(bytes(data))


def test_something_else_is_an_error() -> None:
    for data in (b"", b"\x1f\x8b" + bytes(600), os.urandom(4096)):
        with pytest.raises(FormatError):
            read_all(data)


def test_a_size_below_zero_leads_nowhere() -> None:
    info = tarfile.TarInfo("a")
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (-1024).to_bytes(12, "big", signed=True)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data)
    with pytest.raises(FormatError, match="broken tar"):
        read_all(bytes(data) + bytes(1024))


def header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_not_held(kind: bytes) -> None:
    with pytest.raises(FormatError, match="more than 1048576 bytes of tar headers"):
        read_all(header(kind, 1 << 40) + bytes(4096))


def test_headers_without_end_are_an_error() -> None:
    record = b"9 a=1234\n".ljust(512, b"\0")
    with pytest.raises(FormatError):
        read_all((header(tarfile.XHDTYPE, 9) + record) * 900 + bytes(1024))


def gnu_sparse(tmp_path: Path, *options: str) -> bytes:
    import subprocess

    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"island")
        file.truncate(3 << 20)
    command = ["tar", "--sparse", *options, "-C", str(tmp_path), "-cf", "-", "sparse"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    "options", [["--format=gnu"], *([f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0"))]
)
def test_holes_are_zeros(tmp_path: Path, options: list[str]) -> None:
    data = gnu_sparse(tmp_path, *options)
    (content,) = read_all(data).values()
    assert content == bytes(1 << 20) + b"island" + bytes((2 << 20) - 6)


def test_a_sparse_file_is_not_read_in_an_archive_of_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(gnu_sparse(tmp_path, "--format=gnu"))
    with pytest.raises(FormatError, match="'sparse' is a sparse file, and not a plain file"):
        TarIndex.of(str(path)).read("sparse", 1 << 30)


async def test_files_are_found_at_their_offsets(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", FILES)
    index = TarIndex.of(str(path))
    for info, data in FILES:
        assert index.read(info.name, 1 << 20) == data
        blob = index.blob(info.name)
        assert await blob.tail(10) == (data[-10:], len(data))
        assert await blob.read(0, len(data)) == data
        with pytest.raises(FormatError, match=f"has {len(data)} bytes"):
            await blob.read(0, len(data) + 1)


def test_the_last_of_a_name_wins_and_names_are_clean(tmp_path: Path) -> None:
    members = [file_member("./a/../b", b"1"), file_member("b", b"2"), file_member("/c", b"3")]
    index = TarIndex.of(str(write_tar(tmp_path / "a.tar", members)))
    assert [index.read(name, 9) for name in ("b", "./b", "c", "../../c")] == [b"2", b"2", b"3", b"3"]


def test_links_are_followed_within_the_tar(tmp_path: Path) -> None:
    members = [
        file_member("one/layer.tar", b"content"),
        link_member("two/layer.tar", "../one/layer.tar"),
        link_member("three", "two/layer.tar", hard=True),
        link_member("escaping", "../../../../one/layer.tar"),
    ]
    index = TarIndex.of(str(write_tar(tmp_path / "a.tar", members)))
    for name in ("two/layer.tar", "three", "escaping"):
        assert index.read(name, 99) == b"content"


@pytest.mark.parametrize("hard", [False, True])
def test_nothing_outside_the_tar_is_read(tmp_path: Path, hard: bool) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    members = [
        link_member("absolute", str(secret), hard=hard),
        link_member("relative", "../secret", hard=hard),
    ]
    (tmp_path / "in").mkdir()
    index = TarIndex.of(str(write_tar(tmp_path / "in/a.tar", members)))
    for name in ("absolute", "relative", str(secret), "../secret"):
        with pytest.raises(SourceNotFound, match="lacks"):
            index.read(name, 99)


def test_links_do_not_go_round(tmp_path: Path) -> None:
    members = [link_member("a", "b"), link_member("b", "a"), directory_member("d")]
    index = TarIndex.of(str(write_tar(tmp_path / "a.tar", members)))
    with pytest.raises(FormatError, match="'a' leads through more than 16 links"):
        index.read("a", 99)
    with pytest.raises(FormatError, match="'d' is a directory"):
        index.read("d", 99)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tar(tmp_path / "a.tar", FILES))
    with pytest.raises(FormatError, match="'exact' has 1024 bytes; 1023 are allowed"):
        TarIndex.of(path).read("exact", 1023)
    monkeypatch.setattr(tar_index, "MEMBER_LIMIT", 2)
    with pytest.raises(FormatError, match="more than 2 entries"):
        TarIndex.of(path)


def test_a_tar_that_became_shorter_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [file_member("a", b"1" * 2000)])
    index = TarIndex.of(str(path))
    os.truncate(path, 1500)
    with pytest.raises(FormatError, match=r"a\.tar is cut off within 'a'"):
        index.read("a", 1 << 20)
    with pytest.raises(FormatError, match=r"a\.tar is cut off within 'a'"):
        index.digest("a")


def test_what_cannot_be_read_as_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="is no regular file"):
        list(tar_members(str(tmp_path / "fifo")))
    with pytest.raises(SourceNotFound, match="there is no file"):
        list(tar_members(str(tmp_path / "none")))
    with pytest.raises(StoreError, match="Is a directory"):
        list(tar_members(str(tmp_path)))


def test_kinds(tmp_path: Path) -> None:
    fifo = tarfile.TarInfo("fifo")
    fifo.type = tarfile.FIFOTYPE
    members = [file_member("file"), directory_member("dir"), link_member("sym", "x"), (fifo, b"")]
    found = {one.name: one.kind for one in tar_members(str(write_tar(tmp_path / "a.tar", members)))}
    assert found == {
        "file": MemberKind.FILE,
        "dir": MemberKind.DIRECTORY,
        "sym": MemberKind.SYMLINK,
        "fifo": MemberKind.OTHER,
    }
