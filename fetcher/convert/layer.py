"""From a tar to a lazily readable layer: the conversion as a whole. Blocking; call it from a thread.

    unpack the source      -> a tar that can be read at any place
    read its headers       -> entries, where everything is
    arrange them           -> the output's order, the landmark in it
    divide into members    -> batches, compressed by several processes, at most so many under way
    write in order         -> blob; then the table of contents and the footer

What is kept in memory is the entries, the table of contents and the batches under way, never a file.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Final

from fetcher.convert.archive import read_archive
from fetcher.convert.blob import BlobFile, new_blob
from fetcher.convert.compressing import (
    Compressed,
    Uncompressed,
    compress_bytes,
    compress_members,
    digest_extents,
)
from fetcher.convert.compressors import Compressors
from fetcher.convert.contents import Contents, WrittenEntry
from fetcher.convert.endings import (
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
    archive_end,
    ending,
    toc_content,
)
from fetcher.convert.extents import blocks, read
from fetcher.convert.members import Member, divide, landmark
from fetcher.convert.options import ConvertedLayer, LayerOptions
from fetcher.convert.order import Arrangement, arrange
from fetcher.convert.unpacking import UnpackedTar, unpacked
from fetcher.errors import FetchError, StoreError
from fetcher.toc import toc_digest

_BATCH_SIZE: Final = 1 << 20
_BATCH_MEMBERS: Final = 256
"""A batch goes to a process at once: it has members of 1 MiB together, or so many."""


def _ignore(_count: int) -> None:
    """Progress that nobody wants to see."""


def convert_layer(
    source: str,
    target: str,
    options: LayerOptions,
    *,
    compressors: Compressors,
    scratch: str,
    progress: Callable[[int], None] = _ignore,
) -> ConvertedLayer:
    """Write the layer in the file `source`, a tar, tar.gz, tar.zst or any lazily readable one, to `target`.

    `scratch` is a directory for a temporary file of the layer's uncompressed size. `progress` is called with
    the further bytes of the source file that are done; they sum up to its size. What it raises ends the
    conversion, as any error does, and leaves nothing behind.

    Raises SourceNotFound, FormatError for a source that is broken, StoreError if the disk refuses, and
    FetchError if a compressing process was killed.
    """
    with _refusals(source), unpacked(source, scratch) as tar, new_blob(target) as blob:
        arrangement = arrange(
            read_archive(tar), options.prioritized or (), read=lambda extent: read(tar.fd, [extent])
        )
        writing = _Writing(tar, blob, options, compressors, progress)
        try:
            return writing.write(arrangement, target)
        finally:
            writing.cancel()


@contextmanager
def _refusals(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename not in (None, source) else ""
        message = f"cannot convert {source}: {error.strerror or error}{where}"
        raise StoreError(message, errno=error.errno or 0) from error
    except BrokenProcessPool as error:
        raise FetchError(
            f"cannot convert {source}: a compressing process was killed, for want of memory perhaps"
        ) from error


class _Writing:
    """One layer on its way through the compressing processes."""

    def __init__(
        self,
        tar: UnpackedTar,
        blob: BlobFile,
        options: LayerOptions,
        compressors: Compressors,
        progress: Callable[[int], None],
    ) -> None:
        self._tar = tar
        self._blob = blob
        self._options = options
        self._compressors = compressors
        self._progress = progress
        self._contents = Contents()
        self._diff_id = hashlib.sha256()
        self._uncompressed = 0
        self._batch: list[Member] = []
        self._batch_size = 0
        self._under_way: deque[tuple[list[Member], Future[Compressed]]] = deque()
        self._files: list[tuple[WrittenEntry, Future[str]]] = []
        self._window = 2 * compressors.jobs + 1

    def write(self, arrangement: Arrangement, target: str) -> ConvertedLayer:
        """Write the whole blob, and say what it is."""
        options = self._options
        entries = [
            *arrangement.leading,
            *arrangement.first,
            landmark(prefetch=bool(arrangement.first)),
            *arrangement.rest,
        ]
        self._meter = _Meter(
            self._tar.source_size, sum(entry.archived_size for entry in entries), self._progress
        )
        for member in divide(entries, options, self._contents, trailer=archive_end(options.format)):
            self._add(member)
        self._submit()
        while self._under_way:
            self._collect()
        for entry, future in self._files:
            entry.digest = "sha256:" + future.result()
        json = self._contents.to_json()
        content = toc_content(options.format, json)
        compressed = self._compressors.submit(compress_bytes, options.format, options.level, content).result()
        if content is not json:
            self._diff_id.update(content)
            self._uncompressed += len(content)
        end = ending(options.format, json, compressed, self._blob.size)
        self._blob.write(end.data)
        self._meter.finish()
        digest = toc_digest(json)
        return ConvertedLayer(
            path=target,
            digest=self._blob.digest,
            size=self._blob.size,
            diff_id="sha256:" + self._diff_id.hexdigest(),
            toc_digest=digest,
            uncompressed_size=self._uncompressed,
            annotations={
                TOC_DIGEST: digest,
                UNCOMPRESSED_SIZE: str(self._uncompressed),
                **end.annotations,
            },
            missing=arrangement.missing,
        )

    def cancel(self) -> None:
        """Give up what has been submitted and not been collected."""
        for _, batch in self._under_way:
            batch.cancel()
        for _, digest in self._files:
            digest.cancel()

    def _add(self, member: Member) -> None:
        self._batch.append(member)
        self._batch_size += member.size
        if self._batch_size >= _BATCH_SIZE or len(self._batch) >= _BATCH_MEMBERS:
            self._submit()

    def _submit(self) -> None:
        """Hand the batch to a process, and wait for an earlier one if enough are under way."""
        batch, self._batch = self._batch, []
        self._batch_size = 0
        submit = self._compressors.submit
        options = self._options
        job = [Uncompressed(member.extents, member.spans) for member in batch]
        future = submit(compress_members, self._tar.path, options.format, options.level, job)
        self._under_way.append((batch, future))
        for member in batch:
            self._files += [
                (entry, submit(digest_extents, self._tar.path, extents)) for entry, extents in member.files
            ]
        for block in blocks(self._tar.fd, (extent for member in batch for extent in member.extents)):
            self._diff_id.update(block)
            self._uncompressed += len(block)
        while len(self._under_way) >= self._window:
            self._collect()

    def _collect(self) -> None:
        """Write the batch that was submitted first, and list where its chunks are."""
        batch, future = self._under_way.popleft()
        data, sizes, digests = future.result()
        offset = self._blob.size
        number = 0
        for member, size in zip(batch, sizes, strict=True):
            for chunk, (inner, _) in zip(member.chunks, member.spans, strict=True):
                chunk.offset = offset
                chunk.inner_offset = inner
                chunk.chunk_digest = "sha256:" + digests[number : number + 32].hex()
                if chunk.type != "chunk":
                    # A file of several chunks gets its own, once all of it has been hashed.
                    chunk.digest = chunk.chunk_digest
                number += 32
            offset += size
        self._blob.write(data)
        self._meter.add(sum(member.size for member in batch))


class _Meter:
    """Tells of progress in bytes of the source file, by how much of the output's tar is written."""

    def __init__(self, source_size: int, total: int, progress: Callable[[int], None]) -> None:
        self._source_size = source_size
        self._total = total
        self._progress = progress
        self._written = 0
        self._told = 0

    def add(self, count: int) -> None:
        self._written += count
        self._tell(self._source_size * min(self._written, self._total) // self._total)

    def finish(self) -> None:
        self._tell(self._source_size)

    def _tell(self, done: int) -> None:
        if done > self._told:
            self._progress(done - self._told)
            self._told = done
