"""The layers of a node, on disk: what each is, where it comes from, how far it is.

    ROOT/layers/<layer>/fs/         the plain directory
                        layer.json  LayerRecord
                        toc.json    the table of contents as its digest is of it: fetcher.toc.TocBytes
                        progress    counters (fetcher.progress)
                        lock        flock: held by whoever streams the layer
                        boot        the boot under which an incomplete fs/ was written
                        shape       Shape: what the layers below have a say in
                        here        the boot under which the last file came: complete, until a power loss
                        complete    the completion mark, written after syncfs
    ROOT/layers/.new-*              a layer that is being made
    ROOT/layers.lock                flock: shared while a layer is made

The file system is the truth: a file in fs/ is whole and verified, because it
was linked in as such; a layer is complete when one of its two marks is there.
A new layer appears by one rename. All methods are safe against other processes.

`<layer>` is the layer key: 20 base32 characters (100 bits) of the sha256 over
blob digest and TOC digest. Both, so that an image which pairs another's blob
digest with a TOC of its own gets a directory of its own. Short, so that the
lowerdirs of 127 layers fit into the page that mount(2) has for them.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gc
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from fetcher.errors import FormatError, StoreError
from fetcher.memory import return_freed_memory
from fetcher.nodes import WHITEOUT
from fetcher.progress import Field, Progress
from fetcher.toc import Entry, Toc, parse_shown, parse_toc, toc_json, verify_toc
from fetcher.tree import LayerTree, build_tree

KEY_LENGTH: Final = 20


class RegistrySource(msgspec.Struct, frozen=True, tag="registry"):
    """A blob in a registry; `reference` is the image that named it. Never holds a secret."""

    reference: str
    plain_http: bool = False


class FileSource(msgspec.Struct, frozen=True, tag="file"):
    """A blob in a local file, `path`."""

    path: str


Source = RegistrySource | FileSource


class LayerRecord(msgspec.Struct, frozen=True):
    """What a layer is. `size` and `toc_offset` in bytes of the blob; newest source first."""

    digest: str
    toc_digest: str
    size: int
    toc_offset: int
    sources: list[Source]
    images: list[str] = []


_RECORDS: Final = msgspec.json.Decoder(LayerRecord)


class Shape(msgspec.Struct, frozen=True):
    """What of a layer depends on the layers below it: an unpacker would look there.

    `implied` are directories without an entry, which take over the attributes of the directory that they
    stand on; None if there are too many to be looked up. `whiteouts`: whether it hides anything, which at
    the bottom of an image nothing does.
    """

    implied: list[str] | None
    whiteouts: bool


_SHAPES: Final = msgspec.json.Decoder(Shape)


_IMPLIED_LIMIT: Final = 1000


def shape_of(tree: LayerTree) -> Shape:
    """What to keep of a tree for whoever puts the layer onto others."""
    return Shape(
        implied=list(tree.implied) if len(tree.implied) <= _IMPLIED_LIMIT else None,
        whiteouts=any(node.kind is WHITEOUT for node in tree.nodes.values()),
    )


def layer_key(digest: str, toc_digest: str) -> str:
    """The layer key of a blob with this TOC, both digests as `sha256:<hex>`."""
    both = hashlib.sha256(f"{digest}\n{toc_digest}".encode()).digest()
    return base64.b32encode(both).decode().lower()[:KEY_LENGTH]


def boot_id() -> str:
    """The running kernel's boot id."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


@contextlib.contextmanager
def _garbage_let_be() -> Iterator[None]:
    """Collect none meanwhile: a sixth of the time to build a tree goes into looks at what is no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class StoredToc:
    """The TOC of a layer in the store, verified, to make one tree of; `size` is that of the JSON in bytes."""

    def __init__(self, json: bytes, end: int) -> None:
        """`end` is where the members end in the blob."""
        self.size = len(json)
        self._json = json
        self._end = end

    def tree(self) -> LayerTree:
        """The layer's tree; once. Raises InvalidToc."""
        return self._tree(parse_toc, spend=True)

    def shown_tree(self) -> LayerTree:
        """The tree without what it takes to bring files here, in two thirds of the time; once.

        It is not to stay for long: `build_tree` spends no entries. Raises InvalidToc.
        """
        return self._tree(parse_shown, spend=False)

    def _tree(self, parse: Callable[[bytes], Toc[Entry]], *, spend: bool) -> LayerTree:
        with _garbage_let_be():
            toc = parse(self._json)
            self._json = b""
            tree = build_tree(toc, end=self._end, spend=spend)
            del toc
        return_freed_memory()  # the tables of the TOC
        return tree


class LayerStore:
    """The layers below one root directory."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self.layers_directory = os.path.join(self.root, "layers")

    def create_directories(self) -> None:
        """Make ROOT and ROOT/layers, mode 0700. Raises StoreError if the disk refuses."""
        for directory in (self.root, self.layers_directory):
            try:
                os.makedirs(directory, mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreError(
                    f"cannot make {directory}: {error.strerror}", errno=error.errno or 0
                ) from error

    def directory(self, layer: str) -> str:
        """The layer's own directory."""
        return os.path.join(self.layers_directory, layer)

    def fs(self, layer: str) -> str:
        """The layer's plain directory."""
        return os.path.join(self.layers_directory, layer, "fs")

    def layers(self) -> list[str]:
        """The keys of all layers here, complete or not."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.layers_directory) if len(name) == KEY_LENGTH)
        return []

    def exists(self, layer: str) -> bool:
        """Whether the layer has been opened before."""
        return os.path.exists(os.path.join(self.directory(layer), "layer.json"))

    def is_complete(self, layer: str) -> bool:
        """Whether every file of the layer is here, and all that depends on it may be used.

        It need not be on disk yet: after a power loss it is not complete, then.
        """
        return self.is_on_disk(layer) or self._is_here(layer)

    def is_on_disk(self, layer: str) -> bool:
        """Whether every file of the layer is here, also after a power loss."""
        return os.path.exists(os.path.join(self.directory(layer), "complete"))

    def _is_here(self, layer: str) -> bool:
        try:
            with open(os.path.join(self.directory(layer), "here"), "rb") as file:
                return file.read() == boot_id().encode()
        except OSError:
            return False

    def add(self, record: LayerRecord, toc_json: bytes) -> str:
        """Take a layer whose TOC has been verified; returns its key. One that is here gets the new source.

        Raises StoreError if the disk refuses.
        """
        layer = layer_key(record.digest, record.toc_digest)
        with (
            _refusals(f"cannot keep layer {record.digest} below {self.layers_directory}"),
            self._making(fcntl.LOCK_SH),
        ):
            if not self.exists(layer):
                fresh = tempfile.mkdtemp(prefix=".new-", dir=self.layers_directory)
                try:
                    os.mkdir(os.path.join(fresh, "fs"), 0o755)
                    _write(os.path.join(fresh, "toc.json"), toc_json)
                    _write(os.path.join(fresh, "layer.json"), msgspec.json.encode(record))
                    _write(os.path.join(fresh, "boot"), boot_id().encode())
                    progress = Progress(os.path.join(fresh, "progress"))
                    progress[Field.BYTES_TOTAL] = record.toc_offset
                    progress.close()
                    os.rename(fresh, self.directory(layer))
                    return layer
                except OSError:
                    shutil.rmtree(fresh, ignore_errors=True)
                    if not self.exists(layer):
                        raise
        self.add_sources(layer, record.sources, record.images)
        return layer

    def add_sources(self, layer: str, sources: Sequence[Source], images: Sequence[str]) -> None:
        """Remember more places that the layer can be fetched from, the newest first. Raises as `record`."""
        with self.lock(layer, "record.lock"):
            record = self.record(layer)
            merged = [*sources, *(source for source in record.sources if source not in sources)][:8]
            named = [*record.images, *(image for image in images if image not in record.images)]
            if merged != record.sources or named != record.images:
                record = msgspec.structs.replace(record, sources=merged, images=named)
                self._write(layer, "layer.json", msgspec.json.encode(record))

    def record(self, layer: str) -> LayerRecord:
        """The layer's record; raises StoreError if it cannot be read, FormatError if it is damaged."""
        data = self._read(layer, "layer.json")
        try:
            return _RECORDS.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            path = os.path.join(self.directory(layer), "layer.json")
            raise FormatError(f"{path} is damaged ({error}); remove its directory to fetch anew") from error

    def tree(self, layer: str) -> LayerTree:
        """The layer's tree. Raises as `toc` does, and InvalidToc."""
        return self.toc(layer).tree()

    def toc(self, layer: str) -> StoredToc:
        """The layer's TOC; what is on disk is verified again before it is believed.

        Raises as `record` does, and VerificationError, InvalidToc.
        """
        record = self.record(layer)
        data = self._read(layer, "toc.json")
        verify_toc(data, record.toc_digest)
        return StoredToc(toc_json(data), record.toc_offset)

    def keep_shape(self, layer: str, tree: LayerTree) -> None:
        """Spare others the loading of the tree for what `shape` says. Raises StoreError."""
        path = os.path.join(self.directory(layer), "shape")
        if not os.path.exists(path):
            try:
                _write(path, msgspec.json.encode(shape_of(tree)))
            except OSError as error:
                raise StoreError(f"cannot write {path}: {error.strerror}", errno=error.errno or 0) from error

    def shape(self, layer: str) -> Shape:
        """What `keep_shape` kept, else what the layer's tree says. Raises as `tree` does."""
        try:
            return _SHAPES.decode(self._read(layer, "shape"))
        except (StoreError, msgspec.DecodeError):
            return shape_of(self.tree(layer))

    def progress(self, layer: str) -> Progress:
        """The layer's counters; raises StoreError."""
        path = os.path.join(self.directory(layer), "progress")
        with _refusals(f"cannot open {path}"):
            return Progress(path)

    def same_boot(self, layer: str) -> bool:
        """Whether what is in an incomplete fs/ was written since the machine started.

        If not, a power loss may have left files without their content: verify them first.
        """
        return self._read(layer, "boot") == boot_id().encode()

    def mark_boot(self, layer: str) -> None:
        """Say that fs/ holds only verified files as of this boot."""
        self._write(layer, "boot", boot_id().encode())

    def distrust(self, layer: str) -> None:
        """Take the completion marks away, and have fs/ verified before it is believed again."""
        self._write(layer, "boot", b"")
        self._unmark(layer, "here")
        self._unmark(layer, "complete")

    def replace_toc(self, layer: str, toc_json: bytes) -> None:
        """Put the right table of contents in the place of a damaged one. Raises VerificationError."""
        verify_toc(toc_json, self.record(layer).toc_digest)
        self._write(layer, "toc.json", toc_json)

    def mark_here(self, layer: str) -> None:
        """Say that everything is in fs/, until a power loss."""
        path = os.path.join(self.directory(layer), "here")
        with _refusals(f"cannot write {path}"), open(path, "wb") as file:  # no fsync: that would wait for fs/
            file.write(boot_id().encode())

    def mark_complete(self, layer: str) -> None:
        """Write the completion mark; everything in fs/ must be on disk already."""
        self._write(layer, "complete", b"")
        self._unmark(layer, "here")

    def _unmark(self, layer: str, name: str) -> None:
        path = os.path.join(self.directory(layer), name)
        with _refusals(f"cannot remove {path}"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    @contextlib.contextmanager
    def nothing_is_made(self) -> Iterator[None]:
        """Hold off the making of layers: inside, a `.new-` directory is a crash's. Raises OSError."""
        with self._making(fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def _making(self, kind: int) -> Iterator[None]:
        self.create_directories()
        fd = os.open(f"{self.layers_directory}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind)
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def lock(self, layer: str, name: str = "lock", *, wait: bool = True) -> Iterator[None]:
        """Hold one of the layer's locks. `lock` is the right to stream it.

        Waits for other processes, or with `wait=False` raises BlockingIOError. Raises StoreError, if the
        layer is gone for one.
        """
        path = os.path.join(self.directory(layer), name)
        with _refusals(f"cannot lock {path}"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(fd)

    def _read(self, layer: str, name: str) -> bytes:
        path = os.path.join(self.directory(layer), name)
        with _refusals(f"cannot read {path}"), open(path, "rb") as file:
            return file.read()

    def _write(self, layer: str, name: str, data: bytes) -> None:
        path = os.path.join(self.directory(layer), name)
        with _refusals(f"cannot write {path}"):
            _write(path, data)


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """The boundary at which the system's refusals become StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror}", errno=error.errno or 0) from error


def _write(path: str, data: bytes) -> None:
    """Write a small file so that it is there whole and durable, or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
