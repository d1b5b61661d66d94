"""Layers on their way: fetched, converted and put, with overlap, each of these once.

While one layer is being compressed, the next is fetched and the last is put; at most IN_HAND of them are in
the scratch directory, unless somebody asks for more. On the event loop; converting runs in threads, whose
work is done by the processes of `Compressors`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio

from fetcher.convert import Compressors, ConvertedLayer, LayerFormat, LayerOptions, convert_layer
from fetcher.images import ImageDestination, ImageSource
from fetcher.manifest import Descriptor, LayerDescriptor
from snapshotter.convert.documents import NewLayer
from snapshotter.convert.media import OCI_LAYER, general_annotations
from snapshotter.convert.once import Once, adding_up, run_stoppable
from snapshotter.convert.progress import ConvertProgress, LayerState
from snapshotter.convert.scratch import fetch_blob, scratch_errors
from snapshotter.convert.source_image import OptionsFor, SourceImage

IN_HAND: Final = 4
"""Layers in the scratch directory at a time."""
_AT_ONCE: Final = 2
"""Layers being fetched, and as many being converted: one reads its tar while another's is compressed."""

_SUFFIXES: Final = {LayerFormat.ESTARGZ: "+gzip", LayerFormat.ZSTD_CHUNKED: "+zstd"}


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """What became of the layers of a source: how many, and their bytes before and after."""

    converted: int
    kept: int
    bytes_before: int
    bytes_after: int


class LayerWork:
    """The layers of one source, on their way to one destination through the directory `scratch`."""

    def __init__(
        self,
        source: ImageSource,
        destination: ImageDestination,
        *,
        options_for: OptionsFor,
        compressors: Compressors,
        scratch: str,
        progress: ConvertProgress,
    ) -> None:
        self._source = source
        self._destination = destination
        self._options_for = options_for
        self._compressors = compressors
        self._scratch = scratch
        self._progress = progress
        self._numbers: dict[str, int] = {}
        self._uses: Counter[str] = Counter()
        self._files = Once[str, str]()
        self._results = Once[tuple[str, LayerOptions | None], NewLayer]()
        self._in_hand = anyio.Semaphore(IN_HAND)
        self._fetching = anyio.Semaphore(_AT_ONCE)
        self._converting = anyio.Semaphore(_AT_ONCE)
        self._serial = 0
        self._outcomes: dict[tuple[str, LayerOptions | None], tuple[LayerDescriptor, NewLayer]] = {}

    def expect(self, images: Sequence[SourceImage]) -> None:
        """The images whose layers are to be converted, once, before any is."""
        layers = {layer.digest: layer for image in images for layer in image.layers}
        self._numbers = {digest: number for number, digest in enumerate(layers)}
        self._uses = Counter(layer.digest for image in images for layer in image.layers)
        self._progress.layers(list(layers.values()))

    async def convert(self, image: SourceImage, number: int) -> NewLayer:
        """Bring one layer of an image to the destination. Raises FetchError."""
        layer = image.layers[number]
        async with self._in_hand:
            options = await self._options_for(image, number)
            new = await self._results.get((layer.digest, options), lambda: self._convert(layer, options))
            self._uses[layer.digest] -= 1
            if not self._uses[layer.digest]:
                await self._forget(layer.digest)
        self._outcomes[layer.digest, options] = layer, new
        return new

    async def fetch(self, layer: Descriptor) -> str:
        """The file of a layer of the source, verified. Raises FetchError."""
        return await self._files.get(layer.digest, lambda: self._fetch(layer))

    async def copy(self, descriptor: Descriptor) -> None:
        """Bring a blob to the destination as it is, be it no layer. Raises FetchError."""
        if await self._destination.has(descriptor):
            return
        path = self._new_path()
        await fetch_blob(self._source.blob(descriptor), descriptor, path, lambda _: None)
        await self._destination.put_file(descriptor, path)
        os.unlink(path)

    def counts(self) -> LayerCounts:
        """What has become of the layers so far."""
        results = self._outcomes.values()
        converted = sum(new.diff_id is not None for _, new in results)
        return LayerCounts(
            converted,
            len(results) - converted,
            sum(old.size for old, _ in results),
            sum(new.descriptor.size for _, new in results),
        )

    async def _fetch(self, layer: Descriptor) -> str:
        async with self._fetching:
            path = self._new_path()
            self._enter(layer, LayerState.DOWNLOADING, layer)
            await fetch_blob(self._source.blob(layer), layer, path, self._counting(layer))
            return path

    async def _convert(self, layer: LayerDescriptor, options: LayerOptions | None) -> NewLayer:
        if options is None:
            return await self._keep(layer)
        source = await self.fetch(layer)
        target = self._new_path()
        async with self._converting:
            self._enter(layer, LayerState.CONVERTING, layer)
            converted = await self._in_thread(source, target, options, self._counting(layer))
        annotations = general_annotations(layer.annotations) | converted.annotations
        media_type = OCI_LAYER + _SUFFIXES[options.format]
        descriptor = Descriptor(converted.digest, converted.size, media_type, annotations)
        if not await self._destination.has(descriptor):
            self._enter(layer, LayerState.WRITING, descriptor)
            await self._destination.put_file(descriptor, target)
        os.unlink(target)
        self._enter(layer, LayerState.CONVERTED, descriptor)
        return NewLayer(descriptor, converted.diff_id)

    async def _keep(self, layer: LayerDescriptor) -> NewLayer:
        if not await self._destination.has(layer):
            path = await self.fetch(layer)
            self._enter(layer, LayerState.WRITING, layer)
            await self._destination.put_file(layer, path)
        self._enter(layer, LayerState.KEPT, layer)
        return NewLayer(layer, None)

    async def _in_thread(
        self, source: str, target: str, options: LayerOptions, done: Callable[[int], None]
    ) -> ConvertedLayer:
        """`convert_layer` in a thread, which a cancellation ends at its next sign of progress."""

        def work(check: Callable[[], None]) -> ConvertedLayer:
            return convert_layer(
                source,
                target,
                options,
                compressors=self._compressors,
                scratch=self._scratch,
                progress=adding_up(check, done),
            )

        with scratch_errors(self._scratch):
            return await run_stoppable(work)

    async def _forget(self, digest: str) -> None:
        path = self._files.pop(digest)
        if path is not None:
            os.unlink(path)

    def _enter(self, layer: Descriptor, state: LayerState, blob: Descriptor) -> None:
        self._progress.state(self._numbers[layer.digest], state, blob)

    def _counting(self, layer: Descriptor) -> Callable[[int], None]:
        return partial(self._progress.done, self._numbers[layer.digest])

    def _new_path(self) -> str:
        self._serial += 1
        return os.path.join(self._scratch, f"{self._serial:04}")
