"""Converting a tar of bytes, and looking at what came of it: by tarfile, and by our own reader.

`unpacked` says what a tar unpacks to, entry by entry as an unpacker goes; `lazy` what the reader of a lazily
readable layer shows, every chunk verified. Both are trees of `tests.trees`, so that they can be compared.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import posixpath
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import zstandard

from fetcher.convert import Compressors, ConvertedLayer, LayerFormat, LayerOptions, convert_layer
from fetcher.footer import FOOTER_SIZE, parse_footer
from fetcher.inflate import inflate
from fetcher.nodes import Kind, Node
from fetcher.pieces import verified_piece
from fetcher.toc import TOC_NAME, Toc, TocEntry, parse_toc, unpack_toc
from fetcher.tree import LANDMARK, NO_LANDMARK, LayerTree, build_tree
from tests.trees import ROOT, Entry

OURS: Final = frozenset({LANDMARK, NO_LANDMARK, TOC_NAME})

_KINDS: Final = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}
_NODE_KINDS: Final = {
    Kind.REGULAR: "file",
    Kind.DIRECTORY: "directory",
    Kind.SYMLINK: "symlink",
    Kind.CHARACTER: "character device",
    Kind.BLOCK: "block device",
    Kind.FIFO: "fifo",
    Kind.WHITEOUT: "character device",
}

SOURCES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "plain": bytes,
    "gzip": lambda tar: gzip.compress(tar, 1),
    "zstd": lambda tar: zstandard.compress(tar, 1),
}


class Impossible(Exception):
    """A tar that cannot be unpacked: a file below a file, a link to nothing."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted layer and its parts."""

    layer: ConvertedLayer
    blob: bytes
    toc_json: bytes
    end: int
    """Where the members end."""

    @property
    def toc(self) -> Toc[TocEntry]:
        """The table of contents."""
        return parse_toc(self.toc_json)

    @property
    def tar(self) -> bytes:
        """What an ordinary client decompresses it to."""
        if self.blob.startswith(b"\x1f\x8b"):
            return gzip.decompress(self.blob)
        reader = zstandard.ZstdDecompressor().stream_reader(self.blob, read_across_frames=True)
        return reader.read()

    @property
    def tree(self) -> LayerTree:
        """What our reader makes of its table of contents."""
        return build_tree(self.toc, end=self.end)


@dataclass(slots=True)
class Converter:
    """Converts tars in a directory; the next one overwrites what the last one left."""

    directory: Path
    compressors: Compressors
    progress: list[int] = field(default_factory=list)

    def __call__(self, source: bytes, **options: object) -> Converted:
        """Convert the bytes of a layer file; `options` are those of LayerOptions."""
        path = self.directory / "source"
        target = self.directory / "target"
        scratch = self.directory / "scratch"
        scratch.mkdir(exist_ok=True)
        path.write_bytes(source)
        layer = convert_layer(
            str(path),
            str(target),
            LayerOptions(**options),  # type: ignore[arg-type] # they are whatever the test wants them to be
            compressors=self.compressors,
            scratch=str(scratch),
            progress=self.progress.append,
        )
        assert list(scratch.iterdir()) == []
        return read_layer(layer)


def read_layer(layer: ConvertedLayer) -> Converted:
    """Find the table of contents of a converted layer, as its format says."""
    blob = Path(layer.path).read_bytes()
    if blob.startswith(b"\x1f\x8b"):
        end = parse_footer(blob[-FOOTER_SIZE:], blob_size=len(blob)).toc_offset
        json = unpack_toc(blob[end:-FOOTER_SIZE])
    else:
        # Independently of our reader, by the annotation: offset, sizes compressed and not, type.
        position = layer.annotations["io.containers.zstd-chunked.manifest-position"]
        offset, compressed, size, _ = map(int, position.split(":"))
        end = offset - 8
        json = zstandard.decompress(blob[offset : offset + compressed], max_output_size=size)
    return Converted(layer, blob, json, end)


def formats() -> list[LayerFormat]:
    """Every format that can be written."""
    return list(LayerFormat)


@dataclass(frozen=True, slots=True)
class Archived:
    """An entry of a tar, as tarfile finds it: its header blocks as they are, and its content."""

    name: str
    header: bytes
    content: bytes


def archived(tar: bytes) -> list[Archived]:
    """The entries of a tar."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            header = tar[member.offset : member.offset_data]
            found.append(Archived(member.name, header, file.read() if file else b""))
    return found


def unpacked(tar: bytes) -> dict[str, Entry]:
    """The tree that a tar unpacks to, whiteouts as overlayfs has them; opaque directories do not show."""
    inodes: dict[str, Entry] = {"": Entry("directory", 0o755, 0, 0, 0)}
    names: dict[str, list[str]] = {}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            # GNU tar and Go prefer this name in all forms, tarfile not in 0.1.
            path = clean(member.pax_headers.get("GNU.sparse.name", member.name))
            if path in OURS:
                continue
            for parent in _parents(path):
                if inodes.setdefault(parent, Entry("directory", 0o755, 0, 0, 0)).kind != "directory":
                    raise Impossible
            if member.islnk():
                _link(path, clean(member.linkname), inodes, names)
                continue
            if not path and not member.isdir():
                raise Impossible
            if path not in inodes or inodes[path].kind != "directory" or not member.isdir():
                _remove(path, inodes, names)
            inodes[path] = _entry(archive, member)
            if not member.isdir():
                names[path] = [path]
    for path in [path for path in inodes if path.rpartition("/")[2].startswith(".wh.")]:
        del inodes[path]
        names.pop(path)
        parent, slash, name = path.rpartition("/")
        if not name.startswith(".wh..wh."):
            hidden = parent + slash + name.removeprefix(".wh.")
            inodes.setdefault(hidden, Entry("character device", 0, 0, 0, 0))
    return _with_links(inodes, [tuple(paths) for paths in names.values()])


def _link(path: str, target: str, inodes: dict[str, Entry], names: dict[str, list[str]]) -> None:
    linked = names.get(target)
    if linked is None or not path:
        raise Impossible
    if path != target:
        _remove(path, inodes, names)
        if target not in names:
            raise Impossible
        linked.append(path)
        names[path] = linked
        inodes[path] = inodes[target]


def _remove(path: str, inodes: dict[str, Entry], names: dict[str, list[str]]) -> None:
    if path not in inodes:
        return
    for gone in [each for each in inodes if each == path or each.startswith(path + "/")]:
        del inodes[gone]
        if gone in names:
            names.pop(gone).remove(gone)


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    file = archive.extractfile(member) if member.isreg() else None
    content = file.read() if file else b""
    return Entry(
        _KINDS[member.type],
        member.mode & 0o7777,
        member.uid,
        member.gid,
        math.floor(member.mtime),
        size=len(content),
        target=member.linkname if member.issym() else "",
        rdev=member.devmajor << 20 | member.devminor if member.ischr() or member.isblk() else 0,
        xattrs={
            name.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
            for name, value in member.pax_headers.items()
            if name.startswith("SCHILY.xattr.") and not name.startswith("SCHILY.xattr.trusted.")
        },  # trusted.* is not unpacked
        content=hashlib.sha256(content).hexdigest() if member.isreg() else "",
    )


def lazy(converted: Converted) -> dict[str, Entry]:
    """The tree that our reader shows, the content of each file out of its members, chunk by chunk."""
    tree = converted.tree
    found = {path: _seen(node, converted.blob) for path, node in tree.nodes.items()}
    return _with_links(found, [(node.path, *node.links) for node in tree.inodes() if node.links])


def _seen(node: Node, blob: bytes) -> Entry:
    digest = hashlib.sha256()
    for chunk in node.chunks:
        output = inflate(blob[chunk.offset : chunk.end], chunk.inner_offset + chunk.size)
        digest.update(verified_piece(output, node, chunk))
    return Entry(
        _NODE_KINDS[node.kind],
        node.mode,
        node.uid,
        node.gid,
        node.mtime,
        size=node.size,
        target=node.target,
        rdev=node.major << 20 | node.minor,
        xattrs=node.xattrs,
        content=digest.hexdigest() if node.kind is Kind.REGULAR else "",
    )


def _with_links(inodes: dict[str, Entry], names: list[tuple[str, ...]]) -> dict[str, Entry]:
    for paths in names:
        if len(paths) > 1:
            for path in paths:
                inodes[path] = replace(inodes[path], links=frozenset(paths))
    return {path or ROOT: entry for path, entry in inodes.items()}


def clean(name: str) -> str:
    """A name inside the layer."""
    return posixpath.normpath("/" + name).lstrip("/")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def tar_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of tarfile's own making."""
    out = io.BytesIO()
    with tarfile.open(mode="w", fileobj=out, format=format) as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(
    name: str,
    content: bytes = b"",
    *,
    type: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    mtime: float = 1_600_000_000,
    xattrs: Mapping[str, bytes] | None = None,
    **fields: int | str,
) -> tuple[tarfile.TarInfo, bytes]:
    """An entry for `tar_of`; a directory's name ends with a slash."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if name.endswith("/") else type
    info.linkname = link
    info.mode = mode
    info.mtime = mtime
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
        for key, value in (xattrs or {}).items()
    }
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def hardlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """A hard link with the attributes that `member` gives its target."""
    return member(name, type=tarfile.LNKTYPE, link=target)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, link=target, mode=0o777)
